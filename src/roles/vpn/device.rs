//! The TUN device with its addresses.

use crate::error::Error;
use crate::net::netlink::{Netlink, Network};
use crate::net::tun::TunDevice;
use std::io;
use std::sync::Arc;

/// A device that is up as soon as it has addresses. All of it goes with the process.
pub(super) struct Device {
    pub(super) tun: Arc<TunDevice>,
    netlink: Netlink,
    index: u32,
    addresses: Vec<Network>,
    mtu: u16,
}

impl Device {
    /// Makes the device. It is down, and has no addresses yet.
    pub(super) fn open(name: &str, offload: bool) -> Result<Device, Error> {
        let tun = TunDevice::open(name, offload).map_err(|cause| {
            let advice = match cause.kind() {
                io::ErrorKind::PermissionDenied => ", which takes root or CAP_NET_ADMIN",
                io::ErrorKind::NotFound => ": is the module tun loaded?",
                _ => "",
            };
            Error::System { doing: format!("cannot open the TUN device {name}{advice}"), cause }
        })?;
        let mut netlink = Netlink::open().map_err(Error::while_doing(|| "cannot open netlink"))?;
        let link = netlink
            .link(tun.name())
            .map_err(Error::while_doing(|| format!("cannot find the device {name}")))?;
        let tun = Arc::new(tun);
        Ok(Device { tun, netlink, index: link.index, addresses: Vec::new(), mtu: 0 })
    }

    /// Gives the device this MTU and these addresses and no others, and brings it up. Returns whether
    /// anything has changed.
    pub(super) fn set(&mut self, addresses: &[Network], mtu: u16) -> Result<bool, Error> {
        if self.mtu == mtu && self.addresses == addresses {
            return Ok(false);
        }
        let name = self.tun.name().to_owned();
        let cannot = |what: String| move || format!("cannot {what} the device {name}");
        self.netlink
            .set_mtu(self.index, mtu.into())
            .map_err(Error::while_doing(cannot(format!("set the MTU {mtu} of"))))?;
        self.mtu = mtu;
        let name = self.tun.name().to_owned();
        let cannot = |what: String| move || format!("cannot {what} the device {name}");
        self.netlink
            .set_up(self.index, true)
            .map_err(Error::while_doing(cannot("bring up".into())))?;
        for address in std::mem::take(&mut self.addresses) {
            if addresses.contains(&address) {
                self.addresses.push(address);
            } else if let Err(error) = self.netlink.delete_address(self.index, address) {
                if !Netlink::is_absent(&error) {
                    log::warn!("cannot take {address} from {}: {error}", self.tun.name());
                }
            }
        }
        for address in addresses {
            if !self.addresses.contains(address) {
                self.add(*address)?;
            }
        }
        Ok(true)
    }

    /// The MTU that was set.
    pub(super) fn mtu(&self) -> u16 {
        self.mtu
    }

    /// The addresses that were set.
    pub(super) fn addresses(&self) -> &[Network] {
        &self.addresses
    }

    fn add(&mut self, address: Network) -> Result<(), Error> {
        let cannot = || format!("cannot give {address} to the device {}", self.tun.name());
        match self.netlink.add_address(self.index, address) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(Error::System { doing: cannot(), cause: error })
            }
            _ => {
                self.addresses.push(address);
                Ok(())
            }
        }
    }
}
