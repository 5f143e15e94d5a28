//! The token syntax of HTTP, which a subprotocol's name has (RFC 6455 §4.1).

/// Whether the text is a `token` (RFC 9110 §5.6.2).
pub(crate) fn is_token(text: &str) -> bool {
    let is_tchar = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(is_tchar)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_has_letters_digits_and_some_other_characters() {
        for token in ["binary", "v12.stomp", "X", "0", "!#$%&'*+-.^_`|~"] {
            assert!(is_token(token), "{token:?}");
        }
        for text in ["", " ", "a b", "a,b", "a;b", "a=b", "a/b", "\"a\"", "(a)", "a@b", "\u{7f}", "é"] {
            assert!(!is_token(text), "{text:?}");
        }
    }
}
