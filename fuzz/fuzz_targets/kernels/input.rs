//! Shapes and values from a fuzzer's bytes.

/// Reads bytes; zeros after the last.
pub struct Input<'a> {
    bytes: &'a [u8],
}

/// Sizes around which something changes: vectors, tiles, panels, blocks.
const EDGES: [usize; 16] = [1, 2, 3, 7, 8, 13, 14, 15, 16, 17, 28, 31, 32, 33, 48, 65];

/// What stays in an element that nobody wrote: a NaN that no operation gives.
const UNWRITTEN: u32 = 0x7fc0_dead;

impl<'a> Input<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    pub fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.bytes.split_first() else {
            return 0;
        };
        self.bytes = rest;
        first
    }

    pub fn flag(&mut self) -> bool {
        self.byte() % 2 == 1
    }

    /// A number from 1 to `most`.
    pub fn up_to(&mut self, most: usize) -> usize {
        1 + usize::from(self.byte()) % most.max(1)
    }

    /// A size: often at an edge, sometimes one of `large`, else any up to 70; at most `most`.
    pub fn size(&mut self, large: &[usize], most: usize) -> usize {
        let byte = usize::from(self.byte());
        let size = match byte {
            0..128 => EDGES[byte % EDGES.len()],
            128..136 if !large.is_empty() => large[byte % large.len()],
            _ => 1 + byte % 70,
        };
        size.min(most.max(1))
    }

    /// A vector of exactly this capacity, so that what lies behind it is not its own.
    ///
    /// Uniform on [-1, 1) from a seed, but for a few values that the bytes give as they are if they are numbers of at most 4.
    pub fn values(&mut self, count: usize) -> Vec<f32> {
        let mut state = u64::from_le_bytes(std::array::from_fn(|_| 0x9e ^ self.byte() >> 1)) | 1;
        let mut values: Vec<f32> = (0..count)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 40) as f32 * (2.0 / 16_777_216.0) - 1.0
            })
            .collect();
        for _ in 0..usize::from(self.byte() % 4).min(count) {
            let place = self.place(count);
            let value = f32::from_bits(u32::from_le_bytes(std::array::from_fn(|_| self.byte())));
            if value.abs() <= 4.0 {
                values[place] = value;
            }
        }
        assert_eq!(values.capacity(), count);
        values
    }

    fn place(&mut self, count: usize) -> usize {
        usize::from(u16::from_le_bytes([self.byte(), self.byte()])) % count
    }

    /// Puts NaN, infinities and huge and tiny numbers into the first `count` values; whether there are any.
    pub fn spoil(&mut self, values: &mut [f32], count: usize) -> bool {
        const BAD: [f32; 8] = [
            f32::NAN,
            f32::INFINITY,
            f32::NEG_INFINITY,
            f32::MAX,
            f32::MIN,
            1e30,
            -1e-40,
            -3e20,
        ];
        let spoilt = self.byte() % 4;
        if spoilt == 0 || count == 0 {
            return false;
        }
        for _ in 0..spoilt {
            values[self.place(count)] = BAD[usize::from(self.byte()) % BAD.len()];
        }
        true
    }
}

/// Elements that wait to be written.
pub fn unwritten(count: usize) -> Vec<f32> {
    vec![f32::from_bits(UNWRITTEN); count]
}

/// Fails if an element was never written.
pub fn assert_written(values: &[f32], what: &str) {
    let left = values.iter().position(|value| value.to_bits() == UNWRITTEN);
    assert_eq!(left, None, "{what}: not written");
}

/// Numbers in double precision, with the sum of the sizes of all that was added: what errors are measured by.
#[derive(Clone, Copy, Default)]
pub struct Exact {
    pub value: f64,
    pub size: f64,
}

impl Exact {
    pub fn of(value: f32) -> Self {
        Self {
            value: value.into(),
            size: f64::from(value).abs(),
        }
    }

    pub fn add(&mut self, term: Self) {
        self.value += term.value;
        self.size += term.size;
    }

    pub fn times(self, factor: Self) -> Self {
        Self {
            value: self.value * factor.value,
            size: self.size * factor.size,
        }
    }
}

/// `[rows, inner]` times `[inner, columns]`, each given by its element.
pub fn product(
    [rows, inner, columns]: [usize; 3],
    left: impl Fn(usize, usize) -> Exact,
    right: impl Fn(usize, usize) -> Exact,
) -> Vec<Exact> {
    let mut out = vec![Exact::default(); rows * columns];
    for row in 0..rows {
        for k in 0..inner {
            let factor = left(row, k);
            for column in 0..columns {
                out[row * columns + column].add(factor.times(right(k, column)));
            }
        }
    }
    out
}

/// Fails where a number is further off than rounding can take it.
pub fn assert_close(found: &[f32], expected: &[Exact], tolerance: f64, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        let difference = (f64::from(*found) - expected.value).abs();
        assert!(
            difference <= tolerance * expected.size + 1e-30,
            "{what}: {found} is not {} at {index} (of terms of {})",
            expected.value,
            expected.size
        );
    }
}
