//! A tunnel as JSON: the seed's five fields, and ours.

use crate::state::access::Prefix;
use crate::state::mesh::refusal::{Reason, Refusal};
use crate::state::mesh::tunnel::{
    ADDRESSES_MAX, Address, Framing, MTU_MAX, MTU_MIN, ROUTES_MAX, Remote, Tunnel, TunnelName,
    netmask, netmask_len,
};
use serde_json::{Map, Value};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

/// Every field, as it is spelt, in the order in which they are written.
pub const FIELDS: [&str; 12] = [
    "name",
    "tunnelIP",
    "netmask",
    "addresses",
    "mtu",
    "remoteServer",
    "framing",
    "routes",
    "keepalive",
    "follow",
    "carrier",
    "mssClamp",
];

/// The seed's netmask where none is given, 255.255.255.252, and its equal.
const PREFIX_LEN_IPV4: u8 = 30;
const PREFIX_LEN_IPV6: u8 = 126;

/// What `"keepalive": true` means: many NATs forget a mapping that has been idle for 30 s.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// More often is load without use.
const KEEPALIVE_MIN: Duration = Duration::from_millis(100);
const KEEPALIVE_MAX: Duration = Duration::from_secs(3600);

type Object = Map<String, Value>;
type Wrong = (String, Reason);

/// Reads a tunnel: the `index`th of a request.
pub fn read_tunnel(index: usize, object: &Object) -> Result<Tunnel, Refusal> {
    tunnel(object).map_err(|(field, reason)| Refusal::of_tunnel(index, &field, reason))
}

/// Reads the name of the `index`th tunnel of a request, whatever else is there.
pub fn read_name(index: usize, object: &Object) -> Result<TunnelName, Refusal> {
    name(object).map_err(|(field, reason)| Refusal::of_tunnel(index, &field, reason))
}

/// The tunnel with the fields that are given in place of its own; `index` as above.
pub fn changed(index: usize, tunnel: &Tunnel, given: &Object) -> Result<Tunnel, Refusal> {
    let mut object = written(tunnel);
    if given.get("tunnelIP").and_then(Value::as_str).is_some_and(|text| text.contains('/')) {
        // It says the length itself.
        object.remove("netmask");
    }
    for (field, value) in given {
        object.insert(field.clone(), value.clone());
    }
    read_tunnel(index, &object)
}

/// Writes a tunnel. What is as if it were not given is left out.
pub fn written(tunnel: &Tunnel) -> Object {
    let mut object = Object::new();
    let mut put = |field: &str, value: Value| object.insert(field.to_owned(), value);
    put("name", tunnel.name.as_str().into());
    let mut addresses = tunnel.addresses.iter();
    if let Some(first) = addresses.next() {
        put("tunnelIP", first.ip().to_string().into());
        let len = first.network().length();
        let mask = if first.ip().is_ipv4() { netmask(len).to_string().into() } else { len.into() };
        put("netmask", mask);
    }
    let further: Vec<Value> = addresses.map(|address| address.to_string().into()).collect();
    if !further.is_empty() {
        put("addresses", further.into());
    }
    put("mtu", tunnel.mtu.map_or_else(|| "auto".into(), Value::from));
    put("remoteServer", tunnel.remote.to_string().into());
    let framing = match tunnel.framing {
        Framing::PacketInformation => "pi",
        Framing::Raw => "raw",
    };
    put("framing", framing.into());
    if !tunnel.routes.is_empty() {
        let routes: Vec<Value> =
            tunnel.routes.iter().map(|route| route.to_string().into()).collect();
        put("routes", routes.into());
    }
    if let Some(keepalive) = tunnel.keepalive {
        put("keepalive", seconds(keepalive));
    }
    for (field, value) in
        [("follow", tunnel.follow), ("carrier", tunnel.carrier), ("mssClamp", tunnel.clamp_mss)]
    {
        if value {
            put(field, true.into());
        }
    }
    object
}

/// A time as people write it: whole seconds without a point, others as they were given.
pub fn seconds(time: Duration) -> Value {
    if time.subsec_nanos() == 0 {
        return time.as_secs().into();
    }
    // One division, and so the nearest number there is: `Duration::as_secs_f64` rounds twice
    // and writes 10.851 as 10.850999999999999.
    #[allow(clippy::cast_precision_loss)] // Exact up to 2^53 ns, which is 104 days.
    let nanos = time.as_nanos() as f64;
    (nanos / 1e9).into()
}

fn tunnel(object: &Object) -> Result<Tunnel, Wrong> {
    if let Some(unknown) = object.keys().find(|field| !FIELDS.contains(&field.as_str())) {
        return Err((unknown.clone(), Reason::Unknown));
    }
    let mut addresses = vec![first_address(object)?];
    addresses.extend(list(object, "addresses", ADDRESSES_MAX - 1, &|text| {
        cidr(text).and_then(|(ip, len)| Address::new(ip, len)).ok_or(ADDRESS_ALLOWED)
    })?);
    Ok(Tunnel {
        name: name(object)?,
        addresses,
        mtu: mtu(object)?,
        remote: required(object, "remoteServer", |text| {
            Remote::parse(text).ok_or(Remote::ALLOWED)
        })?,
        framing: framing(object)?,
        routes: list(object, "routes", ROUTES_MAX, &route)?,
        keepalive: keepalive(object)?,
        follow: switch(object, "follow")?,
        carrier: switch(object, "carrier")?,
        clamp_mss: switch(object, "mssClamp")?,
    })
}

const ADDRESS_ALLOWED: &str = "an address that a host can have, such as 10.0.1.1/30 or fd00::1/64";

fn name(object: &Object) -> Result<TunnelName, Wrong> {
    required(object, "name", |text| TunnelName::new(text).ok_or(TunnelName::ALLOWED))
}

/// The seed's tunnelIP and netmask, or ADDRESS/LENGTH in the former.
fn first_address(object: &Object) -> Result<Address, Wrong> {
    let text = required(object, "tunnelIP", |text| Ok(text.to_owned()))?;
    let wrong = || ("tunnelIP".to_owned(), Reason::NotAllowed(ADDRESS_ALLOWED));
    if text.contains('/') {
        if given(object, "netmask").is_some() {
            let twice = "only when tunnelIP has no length of its own";
            return Err(("netmask".to_owned(), Reason::NotAllowed(twice)));
        }
        let (ip, len) = cidr(&text).ok_or_else(wrong)?;
        return Address::new(ip, len).ok_or_else(wrong);
    }
    let ip: IpAddr = text.parse().map_err(|_| wrong())?;
    let len = match (given(object, "netmask"), ip) {
        (None, IpAddr::V4(_)) => PREFIX_LEN_IPV4,
        (None, IpAddr::V6(_)) => PREFIX_LEN_IPV6,
        (Some(value), _) => mask(value, ip).ok_or_else(|| {
            let allowed = "a netmask such as 255.255.255.252, or a length: 1 to 32, with an IPv6 \
                           address 1 to 128";
            ("netmask".to_owned(), Reason::NotAllowed(allowed))
        })?,
    };
    Address::new(ip, len).ok_or_else(wrong)
}

fn mask(value: &Value, ip: IpAddr) -> Option<u8> {
    let len = match value {
        Value::String(text) => match text.parse::<Ipv4Addr>() {
            Ok(mask) => netmask_len(mask).filter(|_| ip.is_ipv4())?,
            Err(_) => digits(text)?,
        },
        value => u8::try_from(value.as_u64()?).ok()?,
    };
    let longest = if ip.is_ipv4() { 32 } else { 128 };
    (1..=longest).contains(&len).then_some(len)
}

fn mtu(object: &Object) -> Result<Option<u16>, Wrong> {
    let mtu = match given(object, "mtu") {
        None => return Ok(None),
        Some(Value::String(text)) if text == "auto" => return Ok(None),
        // The seed's control program may send either.
        Some(Value::String(text)) => digits::<u16>(text),
        Some(value) => value.as_u64().and_then(|mtu| u16::try_from(mtu).ok()),
    };
    mtu.filter(|mtu| (MTU_MIN..=MTU_MAX).contains(mtu)).map(Some).ok_or_else(|| {
        let allowed = "a number from 68 to 65503, or auto for what the path carries";
        ("mtu".to_owned(), Reason::NotAllowed(allowed))
    })
}

fn framing(object: &Object) -> Result<Framing, Wrong> {
    match given(object, "framing").map(Value::as_str) {
        None | Some(Some("pi")) => Ok(Framing::PacketInformation),
        Some(Some("raw")) => Ok(Framing::Raw),
        Some(_) => Err(("framing".to_owned(), Reason::NotAllowed("pi or raw"))),
    }
}

fn keepalive(object: &Object) -> Result<Option<Duration>, Wrong> {
    let time = match given(object, "keepalive") {
        None | Some(Value::Bool(false)) => return Ok(None),
        Some(Value::Bool(true)) => Some(KEEPALIVE),
        Some(value) => value.as_f64().and_then(|time| Duration::try_from_secs_f64(time).ok()),
    };
    let fits = |time: &Duration| (KEEPALIVE_MIN..=KEEPALIVE_MAX).contains(time);
    time.filter(fits).map(Some).ok_or_else(|| {
        let allowed = "seconds from 0.1 to 3600, true for 15, or false";
        ("keepalive".to_owned(), Reason::NotAllowed(allowed))
    })
}

fn route(text: &str) -> Result<Prefix, &'static str> {
    let allowed = "a network such as 192.168.2.0/24 or fd00:2::/64, without bits behind the prefix";
    let (ip, len) = cidr(text).ok_or(allowed)?;
    let prefix = Prefix::new(ip, len).ok_or(allowed)?;
    if prefix.network() == ip { Ok(prefix) } else { Err(allowed) }
}

fn switch(object: &Object, field: &str) -> Result<bool, Wrong> {
    match given(object, field) {
        None => Ok(false),
        Some(value) => {
            value.as_bool().ok_or_else(|| (field.to_owned(), Reason::NotAllowed("true or false")))
        }
    }
}

/// A field that says something: null is as if it were not there.
fn given<'a>(object: &'a Object, field: &str) -> Option<&'a Value> {
    object.get(field).filter(|value| !value.is_null())
}

fn required<T>(
    object: &Object,
    field: &str,
    read: impl FnOnce(&str) -> Result<T, &'static str>,
) -> Result<T, Wrong> {
    let value = given(object, field).ok_or_else(|| (field.to_owned(), Reason::Missing))?;
    let read = value.as_str().ok_or("a string").and_then(read);
    read.map_err(|allowed| (field.to_owned(), Reason::NotAllowed(allowed)))
}

fn list<T>(
    object: &Object,
    field: &str,
    max: usize,
    read: &dyn Fn(&str) -> Result<T, &'static str>,
) -> Result<Vec<T>, Wrong> {
    let Some(value) = given(object, field) else { return Ok(Vec::new()) };
    let wrong = |reason| (field.to_owned(), reason);
    let items = value.as_array().ok_or_else(|| wrong(Reason::NotAllowed("a list of strings")))?;
    if items.len() > max {
        return Err(wrong(Reason::TooMany(max)));
    }
    let read = |(place, item): (usize, &Value)| {
        let read = item.as_str().ok_or("a string").and_then(read);
        read.map_err(|allowed| (format!("{field}[{place}]"), Reason::NotAllowed(allowed)))
    };
    items.iter().enumerate().map(read).collect()
}

fn cidr(text: &str) -> Option<(IpAddr, u8)> {
    let (ip, len) = text.split_once('/')?;
    Some((ip.parse().ok()?, digits(len)?))
}

/// Decimal digits alone, without the sign that `from_str` takes.
fn digits<T: std::str::FromStr>(text: &str) -> Option<T> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
pub(in crate::roles::mesh) mod tests;
