//! Where the store of shared rooms is: `redis://[USER[:PASSWORD]@]HOST[:PORT][/NUMBER]`, and
//! `rediss://` over TLS.

use std::fmt;

const DEFAULT_PORT: u16 = 6379;

/// A Redis, and how to get in. `Debug` and `Display` show no password.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct StoreUrl {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) is_tls: bool,
    /// `default` if there is only a password.
    pub(super) user: Option<String>,
    pub(super) password: Option<String>,
    pub(super) database: u32,
}

impl StoreUrl {
    /// Reads a URL; the error says what is allowed.
    pub(super) fn parse(text: &str) -> Result<StoreUrl, String> {
        let (is_tls, rest) = match text.split_once("://") {
            Some(("redis", rest)) => (false, rest),
            Some(("rediss", rest)) => (true, rest),
            _ => return Err("redis:// or rediss:// and a host".to_owned()),
        };
        let (place, database) = rest.split_once('/').unwrap_or((rest, ""));
        let database = match database {
            "" => 0,
            number => number.parse().map_err(|_| "the number of a database after /".to_owned())?,
        };
        let (user, place) = match place.rsplit_once('@') {
            Some((user, place)) => (Some(user), place),
            None => (None, place),
        };
        let (user, password) = match user.map(|user| user.split_once(':').unwrap_or((user, ""))) {
            Some((user, password)) => (decoded(user)?, decoded(password)?),
            None => (None, None),
        };
        let (host, port) = match place.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, "")) => (host, None),
            Some((host, port)) => (host, Some(port.strip_prefix(':').unwrap_or_default())),
            None => match place.rsplit_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (place, None),
            },
        };
        let port = match port {
            Some(port) => port.parse().ok().filter(|port| *port > 0),
            None => Some(DEFAULT_PORT),
        };
        let port = port.ok_or_else(|| "a port from 1 to 65535".to_owned())?;
        if host.is_empty() || host.chars().any(|sign| sign.is_whitespace() || sign.is_control()) {
            return Err("a host's name or address".to_owned());
        }
        Ok(StoreUrl { host: host.to_owned(), port, is_tls, user, password, database })
    }
}

/// Text with its `%` signs resolved; None for none.
fn decoded(text: &str) -> Result<Option<String>, String> {
    let wrong = || "% and two hexadecimal digits for special signs, in UTF-8".to_owned();
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || char::from(rest.next()?).to_digit(16);
        let (high, low) = (digit().ok_or_else(wrong)?, digit().ok_or_else(wrong)?);
        bytes.push(u8::try_from(16 * high + low).map_err(|_| wrong())?);
    }
    let text = String::from_utf8(bytes).map_err(|_| wrong())?;
    Ok((!text.is_empty()).then_some(text))
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_tls { "rediss" } else { "redis" };
        let host = &self.host;
        let (open, close) = if host.contains(':') { ("[", "]") } else { ("", "") };
        write!(f, "{scheme}://{open}{host}{close}:{}/{}", self.port, self.database)
    }
}

impl fmt::Debug for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_and_shown_without_their_password() {
        for (text, shown, user, password) in [
            ("redis://store", "redis://store:6379/0", None, None),
            ("rediss://store:7/3", "rediss://store:7/3", None, None),
            ("redis://[2001:db8::1]", "redis://[2001:db8::1]:6379/0", None, None),
            ("redis://[::1]:7/", "redis://[::1]:7/0", None, None),
            ("redis://:secret@192.0.2.1", "redis://192.0.2.1:6379/0", None, Some("secret")),
            ("redis://ferry:a%40b%25:@h:7", "redis://h:7/0", Some("ferry"), Some("a@b%:")),
            ("redis://ferry@h", "redis://h:6379/0", Some("ferry"), None),
        ] {
            let url = StoreUrl::parse(text).unwrap();
            assert_eq!((url.to_string(), format!("{url:?}")), (shown.to_owned(), shown.to_owned()));
            assert_eq!((url.user.as_deref(), url.password.as_deref()), (user, password), "{text}");
        }
    }

    #[test]
    fn what_is_no_url_is_refused() {
        for text in [
            "",
            "store",
            "http://h",
            "redis://",
            "redis://h:0",
            "redis://h:x",
            "redis://h:",
            "redis://h/x",
            "redis://h/-1",
            "redis://[::1]x",
            "redis://a%4@h",
            "redis://a%zz@h",
            "redis://%ff@h",
            "redis://a b",
        ] {
            assert!(StoreUrl::parse(text).is_err(), "{text}");
        }
    }
}
