//! The one desktop that all viewers share.
//!
//! Owns the picture, the viewers' changes to it (ink, text, wind) and the list of viewers. Knows nothing of sockets or
//! message layouts. Invariant: its lock is held for one operation (a stroke, a frame, an update) and never across an
//! await.

use crate::picture::{Colour, Ink, LETTER, Picture};
use crate::pixels::Converter;
use crate::rfb::{Rectangle, raw_header, update_header};
use crate::scene::{HEIGHT, Moment, Scene, WIDTH};
use crate::tiles::{Seen, Tiles};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

/// Time between two frames.
const FRAME: Duration = Duration::from_millis(40);
/// Viewers at a time, at most.
const MAX_VIEWERS: usize = 64;
/// One colour per viewer, in the order they connect.
const COLOURS: [Colour; 6] = [0xff_c24b, 0x5f_d7ff, 0xff_7aa8, 0x8d_e969, 0xc6_9cff, 0xff_f2d8];

const LINES: usize = 3;
const COLUMNS: usize = 50;

pub(crate) struct Desktop {
    state: Mutex<State>,
    /// Counts the frames that changed something.
    frames: watch::Sender<u64>,
}

struct State {
    scene: Scene,
    shown: Picture,
    next: Picture,
    tiles: Tiles,
    ink: Ink,
    page: Page,
    pointers: BTreeMap<u64, Pointer>,
    /// Viewers so far: the next viewer's id.
    joined: u64,
    gate: f32,
    wind: f32,
    /// The value that `wind` approaches; the lanterns follow with a delay.
    gust: f32,
}

/// A viewer's pointer; `at` is `None` until the first PointerEvent.
struct Pointer {
    colour: Colour,
    at: Option<[f32; 2]>,
    pressed: bool,
}

impl Desktop {
    pub(crate) fn new() -> Arc<Self> {
        let state = State {
            scene: Scene::new(),
            shown: Picture::new(WIDTH, HEIGHT),
            next: Picture::new(WIDTH, HEIGHT),
            tiles: Tiles::new(WIDTH, HEIGHT),
            ink: Ink::new(WIDTH, HEIGHT),
            page: Page::default(),
            pointers: BTreeMap::new(),
            joined: 0,
            gate: 0.0,
            wind: 0.0,
            gust: 0.0,
        };
        let desktop = Self { state: Mutex::new(state), frames: watch::Sender::new(0) };
        desktop.paint(0.0);
        Arc::new(desktop)
    }

    /// Paints a frame every 40 ms while a viewer is connected; never returns.
    pub(crate) async fn animate(&self) {
        let mut clock = tokio::time::interval(FRAME);
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            clock.tick().await;
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            self.paint(now.as_secs_f64());
        }
    }

    /// Paints the desktop as it is at `seconds` since 1970, if a viewer is connected.
    pub(crate) fn paint(&self, seconds: f64) {
        let mut state = self.state.lock();
        if state.joined > 0 && state.pointers.is_empty() {
            state.gate = 0.0;
            return;
        }
        if state.paint(seconds) {
            self.frames.send_modify(|frame| *frame += 1);
        }
    }

    /// Adds a viewer; `None` when there are too many.
    pub(crate) fn join(self: &Arc<Self>) -> Option<Viewer> {
        let mut state = self.state.lock();
        if state.pointers.len() >= MAX_VIEWERS {
            return None;
        }
        let id = state.joined;
        state.joined += 1;
        let colour = COLOURS[(id % COLOURS.len() as u64) as usize];
        state.pointers.insert(id, Pointer { colour, at: None, pressed: false });
        Some(Viewer { desktop: Arc::clone(self), id })
    }
}

/// One connected viewer; removed when dropped.
pub(crate) struct Viewer {
    desktop: Arc<Desktop>,
    id: u64,
}

impl Viewer {
    /// The state of a viewer that was sent nothing yet.
    pub(crate) fn unseen(&self) -> Seen {
        self.desktop.state.lock().tiles.unseen()
    }

    /// Notifies of every frame that changed something.
    pub(crate) fn frames(&self) -> watch::Receiver<u64> {
        self.desktop.frames.subscribe()
    }

    /// Marks `area` as not sent to this viewer.
    pub(crate) fn forget(&self, seen: &mut Seen, area: Rectangle) {
        self.desktop.state.lock().tiles.forget(seen, area);
    }

    /// Writes a FramebufferUpdate of what is new in `area` to `out`, emptied first; `false` if nothing is new.
    pub(crate) fn update(
        &self,
        seen: &mut Seen,
        area: Rectangle,
        format: &Converter,
        out: &mut Vec<u8>,
    ) -> bool {
        out.clear();
        let state = self.desktop.state.lock();
        let parts = state.tiles.take(seen, area);
        let Ok(count @ 1..) = u16::try_from(parts.len()) else { return false };
        out.extend(update_header(count));
        for part in parts {
            out.extend(raw_header(part));
            let (x, y) = (usize::from(part.x), usize::from(part.y));
            let rows = state.shown.pixels.chunks_exact(WIDTH).skip(y).take(usize::from(part.height));
            for row in rows {
                format.append(&row[x..x + usize::from(part.width)], out);
            }
        }
        true
    }

    /// Moves this viewer's pointer; draws while a button is pressed.
    pub(crate) fn point(&self, buttons: u8, x: u16, y: u16) {
        let at = [(f32::from(x)).min(WIDTH as f32 - 1.0), f32::from(y).min(HEIGHT as f32 - 1.0)];
        let mut state = self.desktop.state.lock();
        let State { pointers, ink, .. } = &mut *state;
        let Some(pointer) = pointers.get_mut(&self.id) else { return };
        // The wheel is buttons 4 to 7 and draws nothing.
        let pressed = buttons & 0b111 != 0;
        if pressed {
            let from = if pointer.pressed { pointer.at.unwrap_or(at) } else { at };
            ink.stroke(from, at, pointer.colour);
        }
        pointer.at = Some(at);
        pointer.pressed = pressed;
    }

    /// Handles a key press, by X11 keysym.
    pub(crate) fn press(&self, keysym: u32) {
        let mut state = self.desktop.state.lock();
        let state = &mut *state;
        let Some(pointer) = state.pointers.get(&self.id) else { return };
        match keysym {
            ESCAPE => {
                state.ink.wipe();
                state.page = Page::default();
            }
            BACKSPACE => state.page.backspace(),
            RETURN | KEYPAD_ENTER => state.page.new_line(),
            LEFT => state.gust -= 30.0,
            RIGHT => state.gust += 30.0,
            // The keysym of a Latin-1 character is its code point; of any other, its code point with bit 24 set.
            0x20..=0xff | 0x0100_0100..=0x0110_ffff => {
                state.page.letter(u8::try_from(keysym).unwrap_or(u8::MAX), pointer.colour);
            }
            _ => {}
        }
    }
}

impl Drop for Viewer {
    fn drop(&mut self) {
        self.desktop.state.lock().pointers.remove(&self.id);
    }
}

const BACKSPACE: u32 = 0xff08;
const RETURN: u32 = 0xff0d;
const ESCAPE: u32 = 0xff1b;
const LEFT: u32 = 0xff51;
const RIGHT: u32 = 0xff53;
const KEYPAD_ENTER: u32 = 0xff8d;

impl State {
    /// Paints a frame; `true` if it differs from the previous one.
    fn paint(&mut self, seconds: f64) -> bool {
        if !self.pointers.is_empty() {
            self.gate = (self.gate + 0.02).min(1.0);
        }
        self.wind += (self.gust - self.wind) * 0.08;
        let moment = Moment { seconds, gate: self.gate, wind: self.wind };
        let picture = &mut self.next;
        self.scene.paint(picture, moment);
        self.ink.over(picture);
        self.page.paint(picture, seconds);
        picture.text(16, 14, 2, "PORTCULLIS", 0xff_ecd0);
        let viewers = match self.pointers.len() {
            1 => "one viewer; open this page twice".to_owned(),
            count => format!("{count} viewers share this desktop"),
        };
        picture.text(16, 34, 1, &viewers, 0xc9_b9d8);
        for pointer in self.pointers.values() {
            if let Some([x, y]) = pointer.at {
                picture.ring(x, y, if pointer.pressed { 5.0 } else { 8.0 }, pointer.colour, 0.9);
            }
        }
        let changed = self.tiles.compare(&self.shown.pixels, &self.next.pixels);
        std::mem::swap(&mut self.shown, &mut self.next);
        changed
    }
}

/// The last lines of typed text, each letter in its writer's colour.
#[derive(Default)]
struct Page {
    lines: [Vec<(u8, Colour)>; LINES],
    line: usize,
}

impl Page {
    fn letter(&mut self, letter: u8, colour: Colour) {
        if self.lines[self.line].len() == COLUMNS - 1 {
            self.new_line();
        }
        self.lines[self.line].push((letter, colour));
    }

    fn new_line(&mut self) {
        if self.line + 1 < LINES {
            self.line += 1;
        } else {
            self.lines.rotate_left(1);
            self.lines[self.line].clear();
        }
    }

    fn backspace(&mut self) {
        if self.lines[self.line].pop().is_none() {
            self.line = self.line.saturating_sub(1);
        }
    }

    fn paint(&self, picture: &mut Picture, seconds: f64) {
        let (left, top, step) = (20, 338, 18);
        picture.rectangle([12.0, 332.0, 628.0, 392.0], 0x0c_0919, 0.66);
        picture.rectangle([12.0, 331.0, 628.0, 332.0], 0xff_ecd0, 0.25);
        if self.line == 0 && self.lines[0].is_empty() {
            picture.text(left + 2 * LETTER, top, 2, " Type here, draw anywhere.", 0x8f_83a8);
            picture.text(
                left + 2 * LETTER,
                top + step,
                2,
                " Arrows blow the lanterns, Esc wipes.",
                0x8f_83a8,
            );
        }
        for (line, y) in self.lines.iter().zip((top..).step_by(step as usize)) {
            for (&(letter, colour), x) in line.iter().zip((left..).step_by(2 * LETTER as usize)) {
                picture.letter(x, y, 2, letter, colour, 1.0);
            }
        }
        let x = (left + self.lines[self.line].len() as i32 * 2 * LETTER) as f32;
        let y = (top + self.line as i32 * step) as f32;
        let lit = if seconds.rem_euclid(1.0) < 0.5 { 0.9 } else { 0.25 };
        picture.rectangle([x, y, x + 10.0, y + 14.0], 0xff_ecd0, lit);
    }
}
