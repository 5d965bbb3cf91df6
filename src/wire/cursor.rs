//! Checked reading of a byte slice: the only index arithmetic in this layer.

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

#[cfg(test)]
mod tests {
    use super::*;

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
