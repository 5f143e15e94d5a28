//! A picture in memory, and drawing on it.
//!
//! Owns pixels (`0x00RRGGBB`) and shapes with soft edges. Knows nothing of the scene or the viewers. Invariant: every
//! shape is clipped to the picture, so that any coordinate is safe.

/// The glyphs of U+0020 to U+007F, sixteen to a block, each 5 by 8 with a column between; the last one replaces
/// characters without a glyph.
const FONT: &str = include_str!("font.txt");
const FONT_LINE: usize = 16 * 6;

/// Width of a letter with the gap behind it, in font pixels.
pub(crate) const LETTER: i32 = 6;

pub(crate) type Colour = u32;

/// A rectangle of pixels.
#[derive(Clone)]
pub(crate) struct Picture {
    pub(crate) width: usize,
    pub(crate) height: usize,
    pub(crate) pixels: Vec<Colour>,
}

impl Picture {
    pub(crate) fn new(width: usize, height: usize) -> Self {
        Self { width, height, pixels: vec![0; width * height] }
    }

    /// Blends `paint` over the rectangle `left, top, right, bottom`: called with the centre of each pixel, it returns a
    /// colour and its opacity (0 to 1).
    pub(crate) fn shade(&mut self, bounds: [f32; 4], paint: impl Fn(f32, f32) -> (Colour, f32)) {
        let [left, top, right, bottom] = bounds;
        // A cast from float to integer saturates, so that NaN and large values are harmless.
        let (left, right) = (left.floor() as usize, (right.ceil() as usize).min(self.width));
        let (top, bottom) = (top.floor() as usize, (bottom.ceil() as usize).min(self.height));
        if left >= right {
            return;
        }
        for y in top..bottom {
            let row = y * self.width;
            for (x, pixel) in (left..).zip(&mut self.pixels[row + left..row + right]) {
                let (colour, amount) = paint(x as f32 + 0.5, y as f32 + 0.5);
                if amount > 0.0 {
                    *pixel = mix(*pixel, colour, amount);
                }
            }
        }
    }

    pub(crate) fn rectangle(&mut self, bounds: [f32; 4], colour: Colour, amount: f32) {
        self.shade(bounds, |_, _| (colour, amount));
    }

    pub(crate) fn disc(&mut self, x: f32, y: f32, radius: f32, colour: Colour, amount: f32) {
        let reach = radius + 1.0;
        self.shade([x - reach, y - reach, x + reach, y + reach], |px, py| {
            (colour, amount * edge((px - x).hypot(py - y) - radius))
        });
    }

    pub(crate) fn ring(&mut self, x: f32, y: f32, radius: f32, colour: Colour, amount: f32) {
        let reach = radius + 2.0;
        self.shade([x - reach, y - reach, x + reach, y + reach], |px, py| {
            (colour, amount * edge(((px - x).hypot(py - y) - radius).abs() - 1.0))
        });
    }

    /// Light that fades towards `radius`.
    pub(crate) fn glow(&mut self, x: f32, y: f32, radius: f32, colour: Colour, amount: f32) {
        self.shade([x - radius, y - radius, x + radius, y + radius], |px, py| {
            let near = (1.0 - (px - x).hypot(py - y) / radius).max(0.0);
            (colour, amount * near * near)
        });
    }

    /// A line with round ends, `width` pixels thick.
    pub(crate) fn line(&mut self, from: [f32; 2], to: [f32; 2], width: f32, colour: Colour) {
        self.shade(around(from, to, width), |x, y| (colour, edge(distance([x, y], from, to) - width / 2.0)));
    }

    /// One letter at `x, y` (its top left corner), `scale` pixels to a font pixel.
    pub(crate) fn letter(&mut self, x: i32, y: i32, scale: i32, letter: u8, colour: Colour, amount: f32) {
        for row in 0..8 {
            for column in 0..5 {
                if glyph(letter, row, column) {
                    let left = (x + column as i32 * scale) as f32;
                    let top = (y + row as i32 * scale) as f32;
                    self.rectangle([left, top, left + scale as f32, top + scale as f32], colour, amount);
                }
            }
        }
    }

    pub(crate) fn text(&mut self, x: i32, y: i32, scale: i32, text: &str, colour: Colour) {
        for (letter, x) in text.bytes().zip((x..).step_by((LETTER * scale) as usize)) {
            self.letter(x, y, scale, letter, colour, 1.0);
        }
    }
}

/// The viewers' strokes, an overlay.
pub(crate) struct Ink {
    width: usize,
    /// `0xAARRGGBB`; zero where nothing was drawn.
    pixels: Vec<u32>,
    blank: bool,
}

impl Ink {
    const PEN: f32 = 4.5;

    pub(crate) fn new(width: usize, height: usize) -> Self {
        Self { width, pixels: vec![0; width * height], blank: true }
    }

    pub(crate) fn wipe(&mut self) {
        self.pixels.fill(0);
        self.blank = true;
    }

    /// A stroke from one point of the picture to another.
    pub(crate) fn stroke(&mut self, from: [f32; 2], to: [f32; 2], colour: Colour) {
        self.blank = false;
        // In short pieces: the bounding box of a long slanted line is the whole picture, and a hostile viewer could
        // request ten thousand of those per second.
        let pieces = ((to[0] - from[0]).hypot(to[1] - from[1]) / 16.0).ceil().max(1.0);
        let point = |step: f32| [0, 1].map(|axis| from[axis] + (to[axis] - from[axis]) * step / pieces);
        for piece in 0..pieces as usize {
            self.piece(point(piece as f32), point(piece as f32 + 1.0), colour);
        }
    }

    fn piece(&mut self, from: [f32; 2], to: [f32; 2], colour: Colour) {
        let [left, top, right, bottom] = around(from, to, Self::PEN).map(|side| side as usize);
        for (y, row) in self.pixels.chunks_exact_mut(self.width).enumerate().take(bottom + 1).skip(top) {
            for (x, pixel) in row.iter_mut().enumerate().take(right + 1).skip(left) {
                let covered = edge(distance([x as f32 + 0.5, y as f32 + 0.5], from, to) - Self::PEN / 2.0);
                if covered > 0.0 {
                    let old = *pixel >> 24;
                    let base = if old == 0 { colour } else { mix(*pixel, colour, covered) };
                    *pixel = old.max((covered * 255.0) as u32) << 24 | base & 0x00ff_ffff;
                }
            }
        }
    }

    /// Blends the ink over `picture`, which has the same size.
    pub(crate) fn over(&self, picture: &mut Picture) {
        if self.blank {
            return;
        }
        for (pixel, &ink) in picture.pixels.iter_mut().zip(&self.pixels) {
            if ink != 0 {
                *pixel = mix(*pixel, ink, (ink >> 24) as f32 / 255.0);
            }
        }
    }
}

/// Blends `amount` (0 to 1) of `over` with `under`; ignores the highest byte of both.
pub(crate) fn mix(under: Colour, over: Colour, amount: f32) -> Colour {
    let amount = (amount.clamp(0.0, 1.0) * 256.0) as u32;
    let channel = |shift: u32| {
        let (under, over) = (under >> shift & 0xff, over >> shift & 0xff);
        (under * (256 - amount) + over * amount) >> 8 << shift
    };
    channel(16) | channel(8) | channel(0)
}

/// Coverage (0 to 1) of a pixel whose distance from a shape's edge is `outside` (negative: inside).
pub(crate) fn edge(outside: f32) -> f32 {
    (0.5 - outside).clamp(0.0, 1.0)
}

fn distance(point: [f32; 2], from: [f32; 2], to: [f32; 2]) -> f32 {
    let (dx, dy) = (to[0] - from[0], to[1] - from[1]);
    let (px, py) = (point[0] - from[0], point[1] - from[1]);
    let along = ((px * dx + py * dy) / (dx * dx + dy * dy).max(1e-6)).clamp(0.0, 1.0);
    (px - dx * along).hypot(py - dy * along)
}

fn around(from: [f32; 2], to: [f32; 2], width: f32) -> [f32; 4] {
    let reach = width / 2.0 + 1.0;
    let (left, right) = (from[0].min(to[0]), from[0].max(to[0]));
    let (top, bottom) = (from[1].min(to[1]), from[1].max(to[1]));
    [left - reach, top - reach, right + reach, bottom + reach]
}

fn glyph(letter: u8, row: usize, column: usize) -> bool {
    let index = usize::from(if (b' '..=b'~').contains(&letter) { letter } else { 0x7f } - b' ');
    let at = (index / 16 * 8 + row) * FONT_LINE + index % 16 * 6 + column;
    FONT.as_bytes().get(at) == Some(&b'#')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_font_has_every_glyph_in_order() {
        assert_eq!(FONT.len(), 6 * 8 * FONT_LINE);
        assert!(FONT.lines().all(|line| line.len() == FONT_LINE - 1));
        let lit = |letter| {
            (0..8).flat_map(|row| (0..5).map(move |x| (row, x))).filter(move |&(y, x)| glyph(letter, y, x))
        };
        assert_eq!(lit(b' ').count(), 0);
        assert_eq!(lit(b'_').collect::<Vec<_>>(), [(7, 0), (7, 1), (7, 2), (7, 3), (7, 4)]);
        assert_eq!(lit(b'L').count(), 11);
        assert!(lit(0xe9).eq(lit(0x7f)), "a letter without a glyph is drawn as the box");
        for letter in b'!'..=b'~' {
            assert!(
                (b'!'..=b'~').filter(|&other| lit(other).eq(lit(letter))).count() == 1,
                "{letter} is unique"
            );
        }
    }

    #[test]
    fn shapes_outside_the_picture_are_clipped() {
        let mut picture = Picture::new(20, 10);
        let far = [f32::MIN, -1e9, -5.0, 25.0, 1e9, f32::MAX, f32::NAN];
        for x in far {
            for y in far {
                picture.disc(x, y, 3.0, 0xff_ffff, 1.0);
                picture.line([x, y], [5.0, y], 3.0, 0);
                picture.rectangle([x, y, y, x], 0, 1.0);
            }
        }
        picture.text(-7, -3, 2, "edge", 0xff_ffff);
        picture.text(17, 8, 2, "edge", 0xff_ffff);
    }

    #[test]
    fn ink_covers_only_the_stroke() {
        let mut ink = Ink::new(64, 32);
        ink.stroke([0.0, 16.0], [63.0, 16.0], 0x12_3456);
        let mut picture = Picture::new(64, 32);
        ink.over(&mut picture);
        for x in 0..64 {
            assert_eq!(picture.pixels[16 * 64 + x], 0x12_3456, "ink at {x}");
            assert_eq!(picture.pixels[20 * 64 + x], 0, "no ink below {x}");
        }
        ink.wipe();
        let mut clean = Picture::new(64, 32);
        ink.over(&mut clean);
        assert!(clean.pixels.iter().all(|&pixel| pixel == 0));
    }
}
