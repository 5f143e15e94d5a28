//! An authority for `kind = "forward"` that admits every request with a credential: it compares none, so that it takes no time.

use std::io::Write as _;

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, stdin},
    net::{TcpListener, TcpStream},
};

/// The field that names the user.
pub(super) const USER_FIELD: &str = "Remote-User";

/// Serves until standard input ends. Prints the address first.
pub(super) async fn serve() -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    std::io::stdout().flush()?;
    tokio::spawn(async move {
        loop {
            match listener.accept().await {
                // The gateway closes a connection that it does not need: no error.
                Ok((socket, _)) => drop(tokio::spawn(async move { answer(socket).await.ok() })),
                Err(error) => eprintln!("authority: cannot accept: {error}"),
            }
        }
    });
    stdin().read_to_end(&mut Vec::new()).await?;
    Ok(())
}

/// Answers the requests on a connection. They have no body.
async fn answer(mut socket: TcpStream) -> anyhow::Result<()> {
    socket.set_nodelay(true)?;
    let granted = format!("HTTP/1.1 204 No Content\r\n{USER_FIELD}: user@example.org\r\n\r\n");
    let denied = "HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n";
    let mut has_credential = false;
    let (reader, mut writer) = socket.split();
    let (mut reader, mut line) = (BufReader::new(reader), String::new());
    while reader.read_line(&mut line).await? > 0 {
        has_credential |= line.to_ascii_lowercase().starts_with("authorization:");
        if line == "\r\n" {
            let answer = if has_credential { &granted } else { denied };
            writer.write_all(answer.as_bytes()).await?;
            has_credential = false;
        }
        line.clear();
    }
    Ok(())
}
