//! FINGERPRINT: a checksum that tells STUN from other protocols on the same port (section 14.7).

/// What a message's FINGERPRINT says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fingerprint {
    /// There is none.
    Absent,
    /// It is the last attribute, and the checksum is that of the message.
    Right,
    /// Its checksum or its length is wrong, or something follows it.
    Wrong,
}

/// The attribute with its header, in bytes.
pub(super) const ATTRIBUTE_LEN: usize = 8;

/// Section 14.7: for protocols that end in a CRC-32 of their own.
const XOR: u32 = 0x5354_554e;

/// Checks the value of the FINGERPRINT that ends a message.
pub(super) fn check(message: &[u8], value: &[u8]) -> Fingerprint {
    let covered = message.len().checked_sub(ATTRIBUTE_LEN).and_then(|len| message.get(..len));
    match covered {
        Some(covered) if value == of(covered) => Fingerprint::Right,
        _ => Fingerprint::Wrong,
    }
}

/// The value for a message: `covered` is all of it up to the attribute, with the length of the whole
/// message in its header.
pub(super) fn of(covered: &[u8]) -> [u8; 4] {
    (crc32(covered) ^ XOR).to_be_bytes()
}

/// The CRC-32 of ITU V.42, as Ethernet and gzip have it.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc: u32, byte| {
        let [low, ..] = crc.to_le_bytes();
        // Cannot miss: the table has an entry for every byte.
        let entry = TABLE.get(usize::from(low ^ byte)).copied().unwrap_or_default();
        crc >> 8 ^ entry
    })
}

/// What each value of the lowest byte adds to the rest.
static TABLE: [u32; 256] = table();

const fn table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut rest: &mut [u32] = &mut table;
    let mut byte: u32 = 0;
    while let Some((entry, after)) = rest.split_first_mut() {
        *entry = byte;
        let mut bit = 0_u32;
        while bit < 8 {
            // 0x04c11db7 from the highest bit down.
            *entry = *entry >> 1 ^ if *entry & 1 == 1 { 0xedb8_8320 } else { 0 };
            bit = bit.wrapping_add(1);
        }
        byte = byte.wrapping_add(1);
        rest = after;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    // The check value of every catalogue of CRCs.
    #[test]
    fn the_check_value_of_crc_32() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        assert_eq!(crc32(b""), 0);
    }
}
