//! The desktop's picture: an evening sky, a castle with a gate, lanterns in the wind, a moon with a clock face.
//!
//! Owns the scenery. Knows nothing of viewers or RFB and reads no clock: the moment is an argument, and the same moment
//! always paints the same picture.

use crate::picture::{Colour, Picture, edge, mix};
use std::f32::consts::{FRAC_PI_2, TAU};

/// Size of the desktop in pixels.
pub(crate) const WIDTH: usize = 640;
pub(crate) const HEIGHT: usize = 400;

const MOON: [f32; 2] = [528.0, 92.0];
const MOON_RADIUS: f32 = 54.0;
const DARK: Colour = 0x15_1126;
const STONE: Colour = 0x1f_1934;
const STONE_LIT: Colour = 0x2b_2243;
const LIGHT: Colour = 0xff_c777;

/// The gate: its middle, the spring of its arch, the ground, half its width.
const GATE: [f32; 4] = [250.0, 258.0, 308.0, 19.0];

const LANTERNS: [Lantern; 4] = [
    Lantern { x: 96.0, phase: 0.10, pace: 11.0, sway: 22.0, colour: 0xff_9d5c },
    Lantern { x: 196.0, phase: 0.62, pace: 9.0, sway: 30.0, colour: 0xff_c46b },
    Lantern { x: 402.0, phase: 0.35, pace: 13.0, sway: 26.0, colour: 0xff_7f6e },
    Lantern { x: 604.0, phase: 0.85, pace: 10.0, sway: 16.0, colour: 0xff_b057 },
];

struct Lantern {
    x: f32,
    phase: f32,
    /// Pixels a second, upwards.
    pace: f32,
    sway: f32,
    colour: Colour,
}

/// What the picture depends on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    /// Seconds since 1970, UTC.
    pub(crate) seconds: f64,
    /// How far the gate is raised, 0 to 1.
    pub(crate) gate: f32,
    /// How far the wind has carried the lanterns, in pixels.
    pub(crate) wind: f32,
}

/// The static part of the picture, painted once.
pub(crate) struct Scene {
    scenery: Picture,
}

impl Scene {
    pub(crate) fn new() -> Self {
        let mut scenery = Picture::new(WIDTH, HEIGHT);
        sky(&mut scenery);
        moon(&mut scenery);
        hills(&mut scenery);
        castle(&mut scenery);
        Self { scenery }
    }

    /// Paints the whole of `picture`.
    pub(crate) fn paint(&self, picture: &mut Picture, moment: Moment) {
        picture.pixels.copy_from_slice(&self.scenery.pixels);
        pennant(picture, moment.seconds);
        portcullis(picture, moment.gate);
        clock(picture, moment.seconds);
        for lantern in &LANTERNS {
            lantern.paint(picture, moment);
        }
    }
}

impl Lantern {
    fn paint(&self, picture: &mut Picture, moment: Moment) {
        let (low, high) = (HEIGHT as f32 + 30.0, -30.0);
        let travel = f64::from(low - high);
        let risen =
            (moment.seconds * f64::from(self.pace) + f64::from(self.phase) * travel).rem_euclid(travel);
        let y = low - risen as f32;
        let turn = (moment.seconds.rem_euclid(3600.0) * TAU as f64 / 9.0) as f32 + self.phase * TAU;
        let span = WIDTH as f32 + 60.0;
        let x = (self.x + self.sway * turn.sin() + moment.wind + 30.0).rem_euclid(span) - 30.0;
        picture.glow(x, y, 30.0, self.colour, 0.55);
        // The paper: an egg, brighter where the candle is.
        picture.shade([x - 10.0, y - 13.0, x + 10.0, y + 13.0], |px, py| {
            let (dx, dy) = ((px - x) / (8.5 - (py - y) * 0.12), (py - y) / 11.5);
            let warmth = (0.9 - (py - y - 4.0).abs() / 16.0).max(0.0);
            (mix(self.colour, 0xff_f3d0, warmth), edge((dx.hypot(dy) - 1.0) * 8.5))
        });
        picture.rectangle([x - 4.0, y + 10.0, x + 4.0, y + 12.0], 0x6b_3325, 0.9);
    }
}

fn sky(picture: &mut Picture) {
    const STOPS: [(f32, Colour); 5] =
        [(0.0, 0x12_1631), (0.34, 0x2b_2757), (0.56, 0x6a_3f75), (0.70, 0xc8_6a72), (0.80, 0xf7_b27c)];
    picture.shade([0.0, 0.0, WIDTH as f32, HEIGHT as f32], |_, y| {
        let at = y / HEIGHT as f32;
        let colour = STOPS
            .windows(2)
            .find(|pair| at < pair[1].0)
            .map_or(STOPS[4].1, |pair| mix(pair[0].1, pair[1].1, (at - pair[0].0) / (pair[1].0 - pair[0].0)));
        (colour, 1.0)
    });
    // Stars, at pseudo-random positions (xorshift).
    let mut state = 0x2545_f491_u32;
    for _ in 0..110 {
        let mut next = |limit: f32| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state as f32 / u32::MAX as f32 * limit
        };
        let (x, y, size) = (next(WIDTH as f32), next(210.0), 0.4 + next(0.9));
        // None behind the desktop's name: they would look like serifs.
        if x < 250.0 && y < 52.0 {
            continue;
        }
        picture.disc(x, y, size, 0xff_f6e0, (1.0 - y / 230.0) * (0.4 + size * 0.4));
    }
}

fn moon(picture: &mut Picture) {
    let [x, y] = MOON;
    picture.glow(x, y, 170.0, 0xff_dca0, 0.5);
    picture.shade([x - 56.0, y - 56.0, x + 56.0, y + 56.0], |px, py| {
        let away = (px - x).hypot(py - y);
        (mix(0xff_f6df, 0xf3_d3a0, away / MOON_RADIUS * 0.9), edge(away - MOON_RADIUS))
    });
    for (dx, dy, radius) in [(-22.0, -16.0, 11.0), (18.0, 20.0, 14.0), (24.0, -22.0, 7.0), (-18.0, 24.0, 6.0)]
    {
        picture.disc(x + dx, y + dy, radius, 0xe2_bf8d, 0.28);
    }
    for hour in 0..12 {
        let (sin, cos) = (TAU * hour as f32 / 12.0).sin_cos();
        let inner = if hour % 3 == 0 { 42.0 } else { 46.0 };
        let point = |radius: f32| [x + sin * radius, y - cos * radius];
        picture.line(point(inner), point(49.0), if hour % 3 == 0 { 3.0 } else { 1.6 }, 0x6d_4a56);
    }
}

fn hills(picture: &mut Picture) {
    let layers: [(Colour, &dyn Fn(f32) -> f32); 3] = [
        (0x7d_4a72, &|x| 262.0 + 11.0 * (x / 71.0 + 1.0).sin() + 6.0 * (x / 29.0).sin()),
        (0x45_2d5c, &|x| 288.0 + 12.0 * (x / 96.0 + 2.3).sin() + 5.0 * (x / 41.0).sin()),
        (DARK, &|x| 308.0 + 9.0 * (x / 130.0 - 2.0).cos() + 2.0 * (x / 23.0).sin()),
    ];
    for (colour, crest) in layers {
        picture.shade([0.0, 240.0, WIDTH as f32, HEIGHT as f32], |x, y| {
            let below = y - crest(x);
            (mix(colour, DARK, below / 150.0), edge(-below))
        });
    }
}

fn castle(picture: &mut Picture) {
    let mut wall = |left: f32, right: f32, top: f32, colour| {
        picture.rectangle([left, top, right, 320.0], colour, 1.0);
        // Crenellations: as many merlons as fit, one at either end.
        let merlons = ((right - left) / 10.0).floor();
        let step = (right - left - 6.0) / (merlons - 1.0);
        for merlon in 0..merlons as usize {
            let x = (left + merlon as f32 * step).round();
            picture.rectangle([x, top - 6.0, x + 6.0, top], colour, 1.0);
        }
    };
    wall(150.0, 350.0, 252.0, STONE);
    wall(120.0, 152.0, 222.0, STONE_LIT);
    wall(348.0, 384.0, 206.0, STONE_LIT);
    wall(182.0, 206.0, 212.0, STONE);
    wall(296.0, 318.0, 226.0, STONE);
    wall(214.0, 286.0, 214.0, STONE_LIT);
    wall(230.0, 270.0, 186.0, STONE_LIT);
    for (x, y) in
        [(133.0, 240.0), (362.0, 226.0), (362.0, 254.0), (192.0, 232.0), (247.0, 200.0), (305.0, 244.0)]
    {
        picture.glow(x + 2.5, y + 4.0, 16.0, LIGHT, 0.45);
        picture.rectangle([x, y, x + 5.0, y + 9.0], LIGHT, 0.95);
    }
    let [middle, _, ground, half] = GATE;
    picture.glow(middle, ground - 14.0, 74.0, LIGHT, 0.5);
    picture.shade([middle - half - 4.0, 220.0, middle + half + 4.0, ground], |x, y| {
        (mix(0xff_e3a6, 0xd9_7b45, (ground - y) / 80.0), arch(x, y, half))
    });
    // Light on the path.
    picture.shade([middle - 70.0, ground - 1.0, middle + 70.0, 344.0], |x, y| {
        let down = (y - ground) / 36.0;
        let across = (x - middle).abs() / (half + down * 34.0);
        (LIGHT, (1.0 - down).max(0.0) * (1.0 - across).max(0.0) * 0.6)
    });
    // The stone around the gate.
    picture.shade([middle - half - 6.0, 220.0, middle + half + 6.0, ground], |x, y| {
        (0x3c_2f55, arch(x, y, half + 4.0) - arch(x, y, half))
    });
}

/// Coverage of a pixel by the gateway of half width `half`.
fn arch(x: f32, y: f32, half: f32) -> f32 {
    let [middle, spring, ..] = GATE;
    let outside = if y < spring { (x - middle).hypot(y - spring) } else { (x - middle).abs() };
    edge(outside - half)
}

/// The portcullis itself, raised by `up` (0 to 1).
fn portcullis(picture: &mut Picture, up: f32) {
    let [middle, spring, ground, half] = GATE;
    let lift = up.clamp(0.0, 1.0) * 52.0;
    let foot = ground - 2.0 - lift;
    picture.shade([middle - half, spring - half, middle + half, ground], |x, y| {
        let across = (x - middle + 100.0).rem_euclid(7.0) - 3.5;
        let along = (foot - y).rem_euclid(9.0) - 4.5;
        // Every upright ends in a spike.
        let upright =
            if y < foot { edge(across.abs() - 1.2) } else { edge(across.abs() - 1.2 + (y - foot) * 0.4) };
        let bar = if y < foot - 3.0 { edge(along.abs() - 1.0) } else { 0.0 };
        let lattice = if y < foot + 4.0 { upright.max(bar) } else { 0.0 };
        (0x1a_1428, lattice * arch(x, y, half))
    });
}

fn pennant(picture: &mut Picture, seconds: f64) {
    let (x, top) = (250.0, 150.0);
    picture.line([x, top], [x, 182.0], 1.6, STONE_LIT);
    let time = seconds.rem_euclid(1000.0) as f32;
    picture.shade([x, top - 2.0, x + 30.0, top + 16.0], |px, py| {
        let out = (px - x) / 28.0;
        let wave = (time * 5.0 - out * 6.0).sin() * 2.6 * out;
        let half = 6.0 * (1.0 - out);
        (
            mix(0xe8_5d4a, 0xb7_3a44, 0.5 + wave / 4.0),
            edge((py - top - 6.5 - wave).abs() - half) * edge(out * 28.0 - 28.0),
        )
    });
}

/// Clock hands on the moon, and the time in digits below it.
fn clock(picture: &mut Picture, seconds: f64) {
    let day = seconds.rem_euclid(86_400.0);
    let hand = |turns: f64, length: f32| {
        let angle = (turns.fract() * f64::from(TAU)) as f32 - FRAC_PI_2;
        [MOON[0] + length * angle.cos(), MOON[1] + length * angle.sin()]
    };
    picture.line(hand(day / 43_200.0 + 0.5, 6.0), hand(day / 43_200.0, 26.0), 4.4, 0x2c_2145);
    picture.line(hand(day / 3600.0 + 0.5, 8.0), hand(day / 3600.0, 38.0), 3.0, 0x2c_2145);
    picture.line(hand(day / 60.0 + 0.5, 12.0), hand(day / 60.0, 45.0), 1.5, 0xd6_4b3f);
    picture.disc(MOON[0], MOON[1], 3.4, 0xd6_4b3f, 1.0);
    let whole = day as u32;
    let figures = format!("{:02}:{:02}:{:02} UTC", whole / 3600, whole / 60 % 60, whole % 60);
    picture.text(MOON[0] as i32 - 71, 160, 2, &figures, 0xff_ecd0);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn painted(moment: Moment) -> Picture {
        let mut picture = Picture::new(WIDTH, HEIGHT);
        Scene::new().paint(&mut picture, moment);
        picture
    }

    #[test]
    fn the_picture_depends_on_the_moment_alone() {
        let moment = Moment { seconds: 1.8e9, gate: 0.0, wind: 0.0 };
        let first = painted(moment).pixels;
        assert!(painted(moment).pixels == first);
        assert!(painted(Moment { seconds: moment.seconds + 1.0, ..moment }).pixels != first);
        assert!(painted(Moment { gate: 1.0, ..moment }).pixels != first);
        assert!(painted(Moment { wind: 40.0, ..moment }).pixels != first);
    }

    #[test]
    fn any_moment_can_be_painted() {
        for seconds in [0.0, -1.0, 86_399.999, 4.1e12, f64::NAN] {
            for wind in [0.0, -1e6, 1e6] {
                painted(Moment { seconds, gate: 2.0, wind });
            }
        }
    }
}
