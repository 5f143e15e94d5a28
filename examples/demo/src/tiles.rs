//! Tracks which parts of the picture changed since each viewer's last update.
//!
//! Owns one stamp per tile. Knows nothing of colours or sockets. Invariant: a tile is reported to a viewer exactly
//! when it changed since that viewer was last sent all of it.

use crate::rfb::Rectangle;

/// Side of a tile in pixels.
const TILE: usize = 16;

/// The picture in tiles, each stamped with the frame in which it last changed.
pub(crate) struct Tiles {
    width: usize,
    height: usize,
    columns: usize,
    stamps: Vec<u64>,
    frame: u64,
}

/// The frame of each tile that one viewer was last sent.
pub(crate) struct Seen(Vec<u64>);

impl Tiles {
    pub(crate) fn new(width: usize, height: usize) -> Self {
        let columns = width.div_ceil(TILE);
        Self { width, height, columns, stamps: vec![1; columns * height.div_ceil(TILE)], frame: 1 }
    }

    /// The state of a viewer that was sent nothing yet.
    pub(crate) fn unseen(&self) -> Seen {
        Seen(vec![0; self.stamps.len()])
    }

    /// Stamps the tiles in which two pictures differ; `true` if there are any.
    pub(crate) fn compare(&mut self, before: &[u32], after: &[u32]) -> bool {
        self.frame += 1;
        let mut any = false;
        let rows = before.chunks_exact(self.width).zip(after.chunks_exact(self.width));
        for (y, (before, after)) in rows.enumerate() {
            let stamps = &mut self.stamps[y / TILE * self.columns..];
            for (stamp, (before, after)) in stamps.iter_mut().zip(before.chunks(TILE).zip(after.chunks(TILE)))
            {
                if *stamp != self.frame && before != after {
                    *stamp = self.frame;
                    any = true;
                }
            }
        }
        any
    }

    /// Marks `area` as not sent: the viewer's next update contains all of it.
    pub(crate) fn forget(&self, seen: &mut Seen, area: Rectangle) {
        let [left, top, right, bottom] = self.tiles_of(area);
        for row in top..bottom {
            seen.0[row * self.columns..][left..right].fill(0);
        }
    }

    /// The rectangles of `area` that the viewer was not sent, extended to whole tiles (stamps are per tile, and a viewer
    /// keeps the whole picture), neighbours joined. Marks them as sent.
    pub(crate) fn take(&self, seen: &mut Seen, area: Rectangle) -> Vec<Rectangle> {
        let [left, top, right, bottom] = self.tiles_of(area);
        // Runs of tiles as [left, top, right, bottom); a run grows down while the row below has the same one.
        let mut runs: Vec<[usize; 4]> = Vec::new();
        for row in top..bottom {
            let mut column = left;
            while column < right {
                let start = column;
                while column < right && self.changed(seen, row, column) {
                    column += 1;
                }
                if start == column {
                    column += 1;
                    continue;
                }
                match runs.iter_mut().rev().find(|run| run[0] == start && run[2] == column && run[3] == row) {
                    Some(above) => above[3] = row + 1,
                    None => runs.push([start, row, column, row + 1]),
                }
            }
        }
        runs.into_iter().map(|run| self.rectangle(run)).collect()
    }

    fn changed(&self, seen: &mut Seen, row: usize, column: usize) -> bool {
        let at = row * self.columns + column;
        let changed = seen.0[at] < self.stamps[at];
        seen.0[at] = self.stamps[at];
        changed
    }

    /// The tiles `area` touches, clipped to the picture.
    fn tiles_of(&self, area: Rectangle) -> [usize; 4] {
        let span = |start: u16, length: u16, limit: usize| {
            let (start, end) = (usize::from(start), usize::from(start) + usize::from(length));
            let (start, end) = (start.min(limit), end.min(limit));
            if start == end { (0, 0) } else { (start / TILE, end.div_ceil(TILE)) }
        };
        let (left, right) = span(area.x, area.width, self.width);
        let (top, bottom) = span(area.y, area.height, self.height);
        [left, top, right, bottom]
    }

    fn rectangle(&self, [left, top, right, bottom]: [usize; 4]) -> Rectangle {
        let (x, y) = (left * TILE, top * TILE);
        let (width, height) = ((right * TILE).min(self.width) - x, (bottom * TILE).min(self.height) - y);
        Rectangle { x: x as u16, y: y as u16, width: width as u16, height: height as u16 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const WIDTH: usize = 70;
    const HEIGHT: usize = 40;
    const ALL: Rectangle = Rectangle { x: 0, y: 0, width: u16::MAX, height: u16::MAX };

    fn area(x: u16, y: u16, width: u16, height: u16) -> Rectangle {
        Rectangle { x, y, width, height }
    }

    #[test]
    fn a_new_viewer_gets_everything_once_then_only_changes() {
        let mut tiles = Tiles::new(WIDTH, HEIGHT);
        let mut seen = tiles.unseen();
        assert_eq!(tiles.take(&mut seen, ALL), [area(0, 0, 70, 40)]);
        assert_eq!(tiles.take(&mut seen, ALL), []);

        let before = vec![0; WIDTH * HEIGHT];
        let mut after = before.clone();
        assert!(!tiles.compare(&before, &after));
        after[17 * WIDTH + 16] = 1;
        after[17 * WIDTH + 33] = 1;
        after[39 * WIDTH + 69] = 1;
        assert!(tiles.compare(&before, &after));
        // Two neighbours joined; the last tile clipped to the picture.
        assert_eq!(tiles.take(&mut seen, ALL), [area(16, 16, 32, 16), area(64, 32, 6, 8)]);
        assert_eq!(tiles.take(&mut seen, ALL), []);
    }

    #[test]
    fn equal_runs_are_joined_downwards() {
        let tiles = Tiles::new(WIDTH, HEIGHT);
        let mut seen = tiles.unseen();
        tiles.take(&mut seen, ALL);
        tiles.forget(&mut seen, area(20, 0, 20, 100));
        assert_eq!(tiles.take(&mut seen, ALL), [area(16, 0, 32, 40)]);
    }

    #[test]
    fn only_the_requested_area_counts_as_sent() {
        let tiles = Tiles::new(WIDTH, HEIGHT);
        let mut seen = tiles.unseen();
        assert_eq!(tiles.take(&mut seen, area(1, 1, 1, 1)), [area(0, 0, 16, 16)]);
        assert_eq!(tiles.take(&mut seen, area(0, 0, 70, 16)), [area(16, 0, 54, 16)]);
        for nowhere in
            [area(0, 0, 0, 9), area(70, 0, 9, 9), area(65535, 65535, 65535, 65535), area(3, 40, 9, 9)]
        {
            assert_eq!(tiles.take(&mut seen, nowhere), [], "{nowhere:?}");
        }
    }

    proptest! {
        #[test]
        fn a_viewer_that_applies_all_updates_has_the_picture(
            dots in prop::collection::vec((0..WIDTH * HEIGHT, any::<[u16; 4]>()), 1..40),
        ) {
            let mut tiles = Tiles::new(WIDTH, HEIGHT);
            let mut seen = tiles.unseen();
            let mut picture = vec![0_u32; WIDTH * HEIGHT];
            let mut copy = vec![u32::MAX; WIDTH * HEIGHT];
            let mut see = |tiles: &Tiles, picture: &[u32], copy: &mut [u32], asked| {
                for part in tiles.take(&mut seen, asked) {
                    for y in usize::from(part.y)..usize::from(part.y + part.height) {
                        let row = y * WIDTH + usize::from(part.x)..y * WIDTH + usize::from(part.x + part.width);
                        copy[row.clone()].copy_from_slice(&picture[row]);
                    }
                }
            };
            for (dot, [x, y, width, height]) in dots {
                let before = picture.clone();
                picture[dot] += 1;
                tiles.compare(&before, &picture);
                see(&tiles, &picture, &mut copy, area(x % 90, y % 60, width % 90, height % 60));
            }
            see(&tiles, &picture, &mut copy, ALL);
            prop_assert_eq!(copy, picture);
        }
    }
}
