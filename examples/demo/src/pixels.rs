//! Pixel formats: converts colours to the format a viewer requested (RFC 6143 §7.4).
//!
//! Owns the sixteen bytes of PIXEL_FORMAT and the conversion from the desktop's own `0x00RRGGBB`. Knows nothing of
//! messages, sockets or pictures. Invariant: the desktop can write every [`PixelFormat`]; an unsupported one is refused
//! while parsing, so that the conversion cannot fail.

use thiserror::Error;

/// Length of PIXEL_FORMAT on the wire, in bytes.
pub(crate) const WIRE_LENGTH: usize = 16;

/// One of the three primary colours: `value * max / 255`, shifted left by `shift` bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Channel {
    /// Largest value; one less than a power of two.
    pub(crate) max: u16,
    /// Position of the lowest bit within the pixel.
    pub(crate) shift: u8,
}

/// A true-colour format the desktop can write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PixelFormat {
    /// 8, 16 or 32.
    pub(crate) bits_per_pixel: u8,
    pub(crate) depth: u8,
    pub(crate) big_endian: bool,
    pub(crate) red: Channel,
    pub(crate) green: Channel,
    pub(crate) blue: Channel,
}

/// Why a format is refused.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum PixelFormatError {
    #[error("{0} bits per pixel; RFB allows 8, 16 and 32")]
    BitsPerPixel(u8),
    #[error("the viewer requested a colour map; this desktop supports true colour only")]
    ColourMap,
    #[error("the largest {colour} value is {max}; it must be one less than a power of two")]
    Max { colour: &'static str, max: u16 },
    #[error("{colour} (largest value {max}, shifted by {shift}) does not fit into {bits} bits")]
    Shift { colour: &'static str, max: u16, shift: u8, bits: u8 },
}

impl PixelFormat {
    /// The format of ServerInit: 32 bits, little-endian, blue in the lowest byte.
    pub(crate) const NATIVE: Self = Self {
        bits_per_pixel: 32,
        depth: 24,
        big_endian: false,
        red: Channel { max: 255, shift: 16 },
        green: Channel { max: 255, shift: 8 },
        blue: Channel { max: 255, shift: 0 },
    };

    /// Parses PIXEL_FORMAT. The three bytes of padding and the depth are ignored: real viewers send anything there.
    pub(crate) fn parse(wire: &[u8; WIRE_LENGTH]) -> Result<Self, PixelFormatError> {
        let &[bits, depth, big, true_colour, rm1, rm0, gm1, gm0, bm1, bm0, red, green, blue, _, _, _] = wire;
        if !matches!(bits, 8 | 16 | 32) {
            return Err(PixelFormatError::BitsPerPixel(bits));
        }
        if true_colour == 0 {
            return Err(PixelFormatError::ColourMap);
        }
        let channel = |colour, max: [u8; 2], shift: u8| {
            let max = u16::from_be_bytes(max);
            let width = max.trailing_ones();
            if max == 0 || max.checked_shr(width).unwrap_or(0) != 0 {
                return Err(PixelFormatError::Max { colour, max });
            }
            if u32::from(shift) + width > u32::from(bits) {
                return Err(PixelFormatError::Shift { colour, max, shift, bits });
            }
            Ok(Channel { max, shift })
        };
        Ok(Self {
            bits_per_pixel: bits,
            depth,
            big_endian: big != 0,
            red: channel("red", [rm1, rm0], red)?,
            green: channel("green", [gm1, gm0], green)?,
            blue: channel("blue", [bm1, bm0], blue)?,
        })
    }

    /// Writes PIXEL_FORMAT.
    pub(crate) fn to_wire(self) -> [u8; WIRE_LENGTH] {
        let [rm1, rm0] = self.red.max.to_be_bytes();
        let [gm1, gm0] = self.green.max.to_be_bytes();
        let [bm1, bm0] = self.blue.max.to_be_bytes();
        let (red, green, blue) = (self.red.shift, self.green.shift, self.blue.shift);
        let big = u8::from(self.big_endian);
        [self.bits_per_pixel, self.depth, big, 1, rm1, rm0, gm1, gm0, bm1, bm0, red, green, blue, 0, 0, 0]
    }
}

/// Converts `0x00RRGGBB` to a viewer's format: three small tables, filled once per SetPixelFormat, so that a pixel costs
/// three look-ups in any format.
pub(crate) struct Converter {
    format: PixelFormat,
    red: [u32; 256],
    green: [u32; 256],
    blue: [u32; 256],
}

impl Converter {
    pub(crate) fn new(format: PixelFormat) -> Self {
        let table = |channel: Channel| {
            let max = u32::from(channel.max);
            // The largest product, 255 * 65535 + 127, fits into 32 bits; parse() checked that the shift does too.
            std::array::from_fn(|value| ((value as u32 * max + 127) / 255) << channel.shift)
        };
        Self { format, red: table(format.red), green: table(format.green), blue: table(format.blue) }
    }

    /// Appends `pixels` to `out` in the viewer's format.
    pub(crate) fn append(&self, pixels: &[u32], out: &mut Vec<u8>) {
        match (self.format.bits_per_pixel, self.format.big_endian) {
            (8, _) => out.extend(pixels.iter().map(|&pixel| self.value(pixel) as u8)),
            (16, false) => {
                out.extend(pixels.iter().flat_map(|&pixel| (self.value(pixel) as u16).to_le_bytes()))
            }
            (16, true) => {
                out.extend(pixels.iter().flat_map(|&pixel| (self.value(pixel) as u16).to_be_bytes()))
            }
            (_, false) => out.extend(pixels.iter().flat_map(|&pixel| self.value(pixel).to_le_bytes())),
            (_, true) => out.extend(pixels.iter().flat_map(|&pixel| self.value(pixel).to_be_bytes())),
        }
    }

    fn value(&self, pixel: u32) -> u32 {
        let [_, red, green, blue] = pixel.to_be_bytes();
        self.red[usize::from(red)] | self.green[usize::from(green)] | self.blue[usize::from(blue)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn format(bits: u8, big_endian: bool, red: (u16, u8), green: (u16, u8), blue: (u16, u8)) -> PixelFormat {
        let channel = |(max, shift)| Channel { max, shift };
        let (red, green, blue) = (channel(red), channel(green), channel(blue));
        PixelFormat { bits_per_pixel: bits, depth: bits, big_endian, red, green, blue }
    }

    fn converted(format: PixelFormat, pixel: u32) -> Vec<u8> {
        let mut out = Vec::new();
        Converter::new(format).append(&[pixel], &mut out);
        out
    }

    #[test]
    fn the_native_format_has_the_bytes_of_the_rfc() {
        let wire = [32, 24, 0, 1, 0, 255, 0, 255, 0, 255, 16, 8, 0, 0, 0, 0];
        assert_eq!(PixelFormat::NATIVE.to_wire(), wire);
        assert_eq!(PixelFormat::parse(&wire), Ok(PixelFormat::NATIVE));
    }

    #[test]
    fn every_width_and_byte_order_is_converted() {
        let orange = 0x00ff_8000;
        assert_eq!(converted(PixelFormat::NATIVE, orange), [0x00, 0x80, 0xff, 0x00]);
        let canvas = format(32, false, (255, 0), (255, 8), (255, 16));
        assert_eq!(converted(canvas, orange), [0xff, 0x80, 0x00, 0x00]);
        let big = format(32, true, (255, 16), (255, 8), (255, 0));
        assert_eq!(converted(big, orange), [0x00, 0xff, 0x80, 0x00]);
        // 5-6-5: red 31 of 31, green 128 * 63 / 255 = 32 of 63, blue 0.
        let high = format(16, false, (31, 11), (63, 5), (31, 0));
        assert_eq!(converted(high, orange), 0xfc00_u16.to_le_bytes());
        let high = PixelFormat { big_endian: true, ..high };
        assert_eq!(converted(high, orange), 0xfc00_u16.to_be_bytes());
        // 3-3-2 with blue on top: red 7, green 128 * 7 / 255 = 4, blue 0.
        let low = format(8, false, (7, 0), (7, 3), (3, 6));
        assert_eq!(converted(low, orange), [7 | 4 << 3]);
    }

    #[test]
    fn black_and_white_reach_both_ends_of_every_range() {
        for max in [1_u16, 3, 31, 63, 255, 1023, 65535] {
            let grey = format(32, true, (max, 0), (1, 31), (1, 30));
            assert_eq!(converted(grey, 0), [0; 4], "max {max}");
            let white = u32::from_be_bytes(converted(grey, 0x00ff_ffff).try_into().unwrap());
            assert_eq!(white, u32::from(max) | 1 << 31 | 1 << 30, "max {max}");
        }
    }

    #[test]
    fn unsupported_formats_are_refused_with_a_cause() {
        let refused = |change: &dyn Fn(&mut [u8; WIRE_LENGTH])| {
            let mut wire = PixelFormat::NATIVE.to_wire();
            change(&mut wire);
            PixelFormat::parse(&wire).unwrap_err().to_string()
        };
        assert_eq!(refused(&|wire| wire[0] = 24), "24 bits per pixel; RFB allows 8, 16 and 32");
        assert_eq!(
            refused(&|wire| wire[3] = 0),
            "the viewer requested a colour map; this desktop supports true colour only"
        );
        assert_eq!(
            refused(&|wire| wire[5] = 0),
            "the largest red value is 0; it must be one less than a power of two"
        );
        assert_eq!(
            refused(&|wire| wire[7] = 254),
            "the largest green value is 254; it must be one less than a power of two"
        );
        assert_eq!(
            refused(&|wire| wire[12] = 25),
            "blue (largest value 255, shifted by 25) does not fit into 32 bits"
        );
        assert_eq!(
            refused(&|wire| wire[0] = 8),
            "red (largest value 255, shifted by 16) does not fit into 8 bits"
        );
    }

    proptest! {
        #[test]
        fn any_sixteen_bytes_are_refused_or_usable(wire in any::<[u8; WIRE_LENGTH]>(), pixel in any::<u32>()) {
            if let Ok(format) = PixelFormat::parse(&wire) {
                prop_assert_eq!(converted(format, pixel).len(), usize::from(format.bits_per_pixel / 8));
                prop_assert_eq!(PixelFormat::parse(&format.to_wire()), Ok(format));
            }
        }

        #[test]
        fn any_sensible_format_is_usable(
            bits in prop::sample::select(vec![8_u8, 16, 32]), widths in any::<[u8; 3]>(), shifts in any::<[u8; 3]>(),
            big in any::<bool>(), pixel in any::<u32>(),
        ) {
            let channel = |index: usize| {
                let width = u32::from(widths[index] % bits.min(16)) + 1;
                let room = u32::from(bits) - width;
                (((1_u32 << width) - 1) as u16, (u32::from(shifts[index]) % (room + 1)) as u8)
            };
            let format = format(bits, big, channel(0), channel(1), channel(2));
            prop_assert_eq!(PixelFormat::parse(&format.to_wire()), Ok(format));
            prop_assert_eq!(converted(format, pixel).len(), usize::from(bits / 8));
        }
    }
}
