//! Checked reading and filling of a byte slice: the only index arithmetic in this layer.

use std::net::{Ipv4Addr, Ipv6Addr};

/// A slice that is read from its front.
///
/// Every `take` returns `None` and leaves the cursor where it was when too few bytes are left.
#[derive(Debug, Clone, Copy)]
pub struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    /// Starts at the front of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Cursor<'a> {
        Cursor { rest: bytes }
    }

    /// What has not been taken yet.
    pub fn rest(self) -> &'a [u8] {
        self.rest
    }

    /// The next `N` bytes.
    pub fn take_array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.rest.split_first_chunk::<N>()?;
        self.rest = rest;
        Some(*head)
    }

    /// The next `len` bytes.
    pub fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.rest.split_at_checked(len)?;
        self.rest = rest;
        Some(head)
    }

    /// One byte.
    pub fn u8(&mut self) -> Option<u8> {
        self.take_array::<1>().map(|[byte]| byte)
    }

    /// Two bytes, least significant first.
    pub fn u16_le(&mut self) -> Option<u16> {
        self.take_array().map(u16::from_le_bytes)
    }

    /// Two bytes, most significant first.
    pub fn u16_be(&mut self) -> Option<u16> {
        self.take_array().map(u16::from_be_bytes)
    }

    /// Four bytes, most significant first.
    pub fn u32_be(&mut self) -> Option<u32> {
        self.take_array().map(u32::from_be_bytes)
    }

    /// Eight bytes, most significant first.
    pub fn u64_be(&mut self) -> Option<u64> {
        self.take_array().map(u64::from_be_bytes)
    }

    /// Four bytes in network order.
    pub fn ipv4(&mut self) -> Option<Ipv4Addr> {
        self.take_array::<4>().map(Ipv4Addr::from)
    }

    /// Sixteen bytes in network order.
    pub fn ipv6(&mut self) -> Option<Ipv6Addr> {
        self.take_array::<16>().map(Ipv6Addr::from)
    }
}

/// A caller's buffer that is filled from its front.
///
/// Every `put` and `overwrite` returns `None` and changes nothing when it does not fit.
#[derive(Debug)]
pub struct Filler<'a> {
    buffer: &'a mut [u8],
    len: usize,
}

impl<'a> Filler<'a> {
    /// Starts at the front of `buffer`; what it holds is overwritten.
    pub fn new(buffer: &'a mut [u8]) -> Filler<'a> {
        Filler { buffer, len: 0 }
    }

    /// How many bytes have been put.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing has been put yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many bytes still fit.
    pub fn room(&self) -> usize {
        self.buffer.len().saturating_sub(self.len)
    }

    /// What has been put.
    pub fn filled(&self) -> &[u8] {
        self.buffer.get(..self.len).unwrap_or_default()
    }

    /// Puts `bytes` after what is there.
    pub fn put(&mut self, bytes: &[u8]) -> Option<()> {
        let end = self.len.checked_add(bytes.len())?;
        self.buffer.get_mut(self.len..end)?.copy_from_slice(bytes);
        self.len = end;
        Some(())
    }

    /// Puts `count` times the same byte.
    pub fn put_repeated(&mut self, byte: u8, count: usize) -> Option<()> {
        let end = self.len.checked_add(count)?;
        self.buffer.get_mut(self.len..end)?.fill(byte);
        self.len = end;
        Some(())
    }

    /// Replaces what was put at `at` bytes from the front.
    pub fn overwrite(&mut self, at: usize, bytes: &[u8]) -> Option<()> {
        let end = at.checked_add(bytes.len()).filter(|end| *end <= self.len)?;
        self.buffer.get_mut(at..end)?.copy_from_slice(bytes);
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fills_in_order_and_refuses_without_moving() {
        let mut buffer = [9; 6];
        let mut filler = Filler::new(&mut buffer);
        assert!(filler.is_empty());
        assert_eq!(filler.put(&[1, 2, 3]), Some(()));
        assert_eq!((filler.put(&[4; 4]), filler.put_repeated(4, 4)), (None, None));
        assert_eq!((filler.len(), filler.room()), (3, 3));
        assert_eq!(filler.put_repeated(4, 2), Some(()));
        assert_eq!(
            (filler.overwrite(4, &[7, 7]), filler.overwrite(usize::MAX, &[7])),
            (None, None)
        );
        assert_eq!(filler.overwrite(3, &[7, 8]), Some(()));
        assert_eq!(filler.filled(), [1, 2, 3, 7, 8]);
        assert_eq!(buffer, [1, 2, 3, 7, 8, 9]);
    }

    #[test]
    fn reads_in_order_and_stops_without_moving() {
        let mut cursor = Cursor::new(&[1, 2, 3, 4, 5, 6]);
        assert_eq!(cursor.u8(), Some(1));
        assert_eq!(cursor.u16_le(), Some(0x0302));
        assert_eq!(cursor.u16_be(), Some(0x0405));
        assert_eq!(cursor.u16_be(), None);
        assert_eq!(cursor.rest(), &[6]);
        assert_eq!(cursor.take(2), None);
        assert_eq!(cursor.take(1), Some(&[6][..]));
        assert_eq!(cursor.u8(), None);
    }

    #[test]
    fn reads_addresses() {
        let mut cursor = Cursor::new(&[1, 2, 3, 4]);
        assert_eq!(cursor.ipv4(), Some(Ipv4Addr::new(1, 2, 3, 4)));
        assert_eq!(cursor.ipv6(), None);
        let mut bytes = [0; 16];
        bytes[15] = 1;
        assert_eq!(Cursor::new(&bytes).ipv6(), Some(Ipv6Addr::LOCALHOST));
    }
}
