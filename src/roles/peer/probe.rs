//! Probes, authenticated by the room's key: nobody outside the room can make any.

use blake2::Blake2sMac;
use blake2::digest::consts::U16;
use blake2::digest::{KeyInit, Mac};

use super::room::RoomKeys;
use crate::wire::peer::{MAC_LEN, Probe, parse_probe, write_probe};

/// Why a probe was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProbeError {
    /// It is no probe.
    Malformed,
    /// It is not of this room, or was changed on the way.
    Forged,
}

/// Makes and verifies probes of a room.
///
/// A captured probe verifies again when it is replayed. A pong counts only for a ping that waits
/// for its `tx`; a ping costs its replayer as many bytes as it gets back.
#[derive(Clone)]
pub struct ProbeAuth {
    /// Keyed once: BLAKE2 takes a block for that.
    keyed: Blake2sMac<U16>,
}

impl ProbeAuth {
    /// For the room of these keys.
    pub fn new(keys: &RoomKeys) -> ProbeAuth {
        ProbeAuth { keyed: KeyInit::new(&keys.probe.into()) }
    }

    /// Writes a probe into `out`, which it empties first.
    pub fn write(&self, out: &mut Vec<u8>, probe: &Probe) {
        write_probe(out, probe, |covered| self.mac(covered));
    }

    /// Reads a probe and verifies it, in a time that does not tell how much of the mac is right.
    /// Whether it is for this member is for the caller to see.
    pub fn read(&self, datagram: &[u8]) -> Result<Probe, ProbeError> {
        let (probe, covered, mac) = parse_probe(datagram).ok_or(ProbeError::Malformed)?;
        let expected = self.keyed.clone().chain_update(covered);
        expected.verify_slice(&mac).map_err(|_| ProbeError::Forged)?;
        Ok(probe)
    }

    fn mac(&self, covered: &[u8]) -> [u8; MAC_LEN] {
        self.keyed.clone().chain_update(covered).finalize().into_bytes().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::peer::{PROBE_LEN, ProbeKind};
    use crate::wire::rendezvous::{MemberId, RoomId};

    fn auth(key: u8) -> ProbeAuth {
        ProbeAuth::new(&RoomKeys {
            id: RoomId([1; 16]),
            announce: [2; 32],
            probe: [key; 32],
            preshared: [4; 32],
        })
    }

    fn ping() -> Probe {
        Probe {
            kind: ProbeKind::Ping,
            tx: 77,
            from: MemberId([1; 8]),
            to: MemberId([2; 8]),
            seen: "0.0.0.0:0".parse().unwrap(),
        }
    }

    // Python 3: hashlib.blake2s(bytes(range(48)), key=bytes([7] * 32), digest_size=16)
    #[test]
    fn the_mac_is_that_of_another_implementation() {
        let covered: [u8; 48] = std::array::from_fn(|at| u8::try_from(at).unwrap());
        let expected = 0x6912_b396_417a_1b14_4204_9721_b9e0_86b1_u128.to_be_bytes();
        assert_eq!(auth(7).mac(&covered), expected);
    }

    #[test]
    fn a_probe_reads_back_in_its_room_only() {
        let mut datagram = Vec::new();
        auth(7).write(&mut datagram, &ping());
        assert_eq!(datagram.len(), PROBE_LEN);
        assert_eq!(auth(7).read(&datagram), Ok(ping()));
        assert_eq!(auth(8).read(&datagram), Err(ProbeError::Forged));
    }

    #[test]
    fn any_change_is_noticed() {
        let mut datagram = Vec::new();
        auth(7).write(&mut datagram, &ping());
        for at in 0..datagram.len() {
            for bit in 0..8 {
                let mut changed = datagram.clone();
                changed[at] ^= 1 << bit;
                assert!(auth(7).read(&changed).is_err(), "byte {at}, bit {bit}");
            }
            assert_eq!(auth(7).read(&datagram[..at]), Err(ProbeError::Malformed));
        }
    }
}
