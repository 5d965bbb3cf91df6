//! Counters, their registry, and the answer to a Prometheus scrape.
//!
//! The format is the Prometheus text exposition format, version 0.0.4. Threads hold an
//! [`Arc`] of each counter and add to it without a lock; only the thread that answers the scrape
//! holds the [`Registry`].

use std::fmt::{self, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

/// The longest request head that [`respond`] reads, in bytes: a scraper sends a few hundred.
pub const REQUEST_MAX: usize = 4096;

/// A number that only grows; it wraps at 2^64.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`.
    pub fn add(&self, n: u64) {
        // Relaxed here and below: a counter orders nothing, it is only read for reports.
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// Adds one.
    pub fn increment(&self) {
        self.add(1);
    }

    /// The value now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that rises and falls.
#[derive(Debug, Default)]
pub struct Gauge(AtomicI64);

impl Gauge {
    /// Adds `n`, which may be negative.
    pub fn add(&self, n: i64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// Replaces the value.
    pub fn set(&self, n: i64) {
        self.0.store(n, Ordering::Relaxed);
    }

    /// The value now.
    pub fn get(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What a family of metrics counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows; the name ends in `_total`.
    Counter,
    /// Rises and falls.
    Gauge,
}

impl Kind {
    /// The word on the `# TYPE` line.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
        }
    }
}

/// One family as the documentation shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FamilyInfo {
    /// The metric name.
    pub name: &'static str,
    /// Counter or gauge.
    pub kind: Kind,
    /// The help text, not escaped.
    pub help: &'static str,
    /// Label key and value of each series; empty for a family without labels.
    pub labels: Vec<(&'static str, &'static str)>,
}

#[derive(Debug)]
enum Value {
    Counter(Arc<Counter>),
    Gauge(Arc<Gauge>),
}

impl Value {
    /// The value as printed, and whether it is zero.
    fn print(&self) -> (String, bool) {
        match self {
            Value::Counter(counter) => {
                let n = counter.get();
                (n.to_string(), n == 0)
            }
            Value::Gauge(gauge) => {
                let n = gauge.get();
                (n.to_string(), n == 0)
            }
        }
    }
}

#[derive(Debug)]
struct Series {
    label: Option<(&'static str, &'static str)>,
    value: Value,
}

#[derive(Debug)]
struct Family {
    name: &'static str,
    kind: Kind,
    help: &'static str,
    label_key: Option<&'static str>,
    series: Vec<Series>,
}

impl Family {
    fn write_series_name(&self, series: &Series, out: &mut String) {
        match series.label {
            Some(label) => write_labelled(self.name, label, out),
            None => out.push_str(self.name),
        }
    }
}

/// Puts a series of a live family: its label's value, and its own.
pub type Put<'a> = dyn FnMut(&str, u64) + 'a;

/// A family whose series come and go while the process runs.
struct LiveFamily {
    info: FamilyInfo,
    label_key: &'static str,
    read: Box<dyn Fn(&mut Put<'_>)>,
}

impl fmt::Debug for LiveFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LiveFamily").field("info", &self.info).finish_non_exhaustive()
    }
}

/// All counters and gauges of a process, in the order in which they were registered; live families
/// behind the others.
#[derive(Debug, Default)]
pub struct Registry {
    families: Vec<Family>,
    live: Vec<LiveFamily>,
}

impl Registry {
    /// An empty registry.
    pub fn new() -> Self {
        Self::default()
    }

    /// The counter `name`, registered by the first call. The name is `[a-z_]+` and ends in
    /// `_total`; it is not also the name of a gauge or of labelled counters. A debug build
    /// asserts that; a release build hands out a counter that no report shows.
    pub fn counter(&mut self, name: &'static str, help: &'static str) -> Arc<Counter> {
        self.any_counter(name, help, None)
    }

    /// One counter of a family: same name and label key, one label value each. `label` is
    /// `(key, value)`. Otherwise as [`Registry::counter`].
    pub fn labelled_counter(
        &mut self,
        name: &'static str,
        help: &'static str,
        label: (&'static str, &'static str),
    ) -> Arc<Counter> {
        debug_assert!(is_name(label.0), "label key {:?} is not [a-z_]+", label.0);
        self.any_counter(name, help, Some(label))
    }

    /// The gauge `name`, registered by the first call. The rules are those of
    /// [`Registry::counter`], without the ending.
    pub fn gauge(&mut self, name: &'static str, help: &'static str) -> Arc<Gauge> {
        let fresh = || Value::Gauge(Arc::default());
        match self.series(name, help, Kind::Gauge, None, fresh) {
            Some(Value::Gauge(gauge)) => Arc::clone(gauge),
            _ => Arc::default(),
        }
    }

    /// A family with a series for each thing of a kind that there is, by the label `label_key`:
    /// `read` is asked at each scrape. [`Registry::summary`] leaves it out.
    pub fn live(
        &mut self,
        name: &'static str,
        help: &'static str,
        kind: Kind,
        label_key: &'static str,
        read: impl Fn(&mut Put<'_>) + 'static,
    ) {
        debug_assert!(is_name(name) && is_name(label_key), "{name:?} or its label is not [a-z_]+");
        let info = FamilyInfo { name, kind, help, labels: Vec::new() };
        self.live.push(LiveFamily { info, label_key, read: Box::new(read) });
    }

    /// The exposition: HELP and TYPE once for each family, then its series.
    pub fn render(&self) -> String {
        let mut out = String::with_capacity(self.families.len() * 160);
        for family in &self.families {
            write_head(family.name, family.kind, family.help, &mut out);
            for series in &family.series {
                family.write_series_name(series, &mut out);
                out.push(' ');
                out.push_str(&series.value.print().0);
                out.push('\n');
            }
        }
        for family in &self.live {
            let FamilyInfo { name, kind, help, .. } = family.info;
            write_head(name, kind, help, &mut out);
            (family.read)(&mut |label, value| {
                write_labelled(name, (family.label_key, label), &mut out);
                // Writing to a String cannot fail.
                let _ = writeln!(out, " {value}");
            });
        }
        out
    }

    /// One line for the log: `name=value name{key="value"}=value`, without the zeros;
    /// `all counters are zero` when nothing is left.
    pub fn summary(&self) -> String {
        let mut out = String::new();
        for family in &self.families {
            for series in &family.series {
                let (value, zero) = series.value.print();
                if zero {
                    continue;
                }
                if !out.is_empty() {
                    out.push(' ');
                }
                family.write_series_name(series, &mut out);
                out.push('=');
                out.push_str(&value);
            }
        }
        if out.is_empty() {
            out.push_str("all counters are zero");
        }
        out
    }

    /// The labels' values of a family's counters that are not zero, with what was counted.
    pub fn counted(&self, name: &str) -> Vec<(&'static str, u64)> {
        let family = self.families.iter().find(|family| family.name == name);
        let series = family.into_iter().flat_map(|family| &family.series);
        let counted = series.filter_map(|series| match &series.value {
            Value::Counter(counter) => Some((series.label?.1, counter.get())),
            Value::Gauge(_) => None,
        });
        counted.filter(|(_, count)| *count > 0).collect()
    }

    /// Every family, in the order of registration.
    pub fn families(&self) -> impl Iterator<Item = FamilyInfo> + '_ {
        let families = self.families.iter().map(|family| FamilyInfo {
            name: family.name,
            kind: family.kind,
            help: family.help,
            labels: family.series.iter().filter_map(|series| series.label).collect(),
        });
        families.chain(self.live.iter().map(|family| family.info.clone()))
    }

    fn any_counter(
        &mut self,
        name: &'static str,
        help: &'static str,
        label: Option<(&'static str, &'static str)>,
    ) -> Arc<Counter> {
        debug_assert!(name.ends_with("_total"), "counter {name:?} does not end in _total");
        let fresh = || Value::Counter(Arc::default());
        match self.series(name, help, Kind::Counter, label, fresh) {
            Some(Value::Counter(counter)) => Arc::clone(counter),
            _ => Arc::default(),
        }
    }

    /// The series, made with `fresh` when it is new; `None` when the name is taken by another
    /// kind or label key.
    fn series(
        &mut self,
        name: &'static str,
        help: &'static str,
        kind: Kind,
        label: Option<(&'static str, &'static str)>,
        fresh: impl FnOnce() -> Value,
    ) -> Option<&Value> {
        debug_assert!(is_name(name), "metric name {name:?} is not [a-z_]+");
        let label_key = label.map(|(key, _)| key);
        let family_index = self.families.iter().position(|family| family.name == name);
        let family_index = family_index.unwrap_or_else(|| {
            self.families.push(Family { name, kind, help, label_key, series: Vec::new() });
            self.families.len() - 1
        });
        let family = self.families.get_mut(family_index)?;
        let same = family.kind == kind && family.label_key == label_key;
        debug_assert!(same, "metric {name:?} is registered with another kind or label key");
        if !same {
            return None;
        }
        let series_index = family.series.iter().position(|series| series.label == label);
        let series_index = series_index.unwrap_or_else(|| {
            family.series.push(Series { label, value: fresh() });
            family.series.len() - 1
        });
        family.series.get(series_index).map(|series| &series.value)
    }
}

fn write_head(name: &str, kind: Kind, help: &str, out: &mut String) {
    out.push_str("# HELP ");
    out.push_str(name);
    out.push(' ');
    escape(help, false, out);
    out.push_str("\n# TYPE ");
    out.push_str(name);
    out.push(' ');
    out.push_str(kind.as_str());
    out.push('\n');
}

fn write_labelled(name: &str, (key, value): (&str, &str), out: &mut String) {
    out.push_str(name);
    out.push('{');
    out.push_str(key);
    out.push_str("=\"");
    escape(value, true, out);
    out.push_str("\"}");
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
}

/// The format escapes backslash and line feed in help, and the double quote too in label values.
fn escape(text: &str, quotes: bool, out: &mut String) {
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '"' if quotes => out.push_str("\\\""),
            other => out.push(other),
        }
    }
}

/// The whole answer to an HTTP/1.x request, after which the connection is closed.
///
/// `request` is everything received so far. Returns `None` until the request head is complete
/// (it ends with an empty line, CRLF or LF); a head of [`REQUEST_MAX`] bytes that is still not
/// complete is answered with 431. GET and HEAD are served on `/metrics` and `/healthz`; a query
/// is ignored, a body is not read.
pub fn respond(request: &[u8], registry: &Registry) -> Option<Vec<u8>> {
    // RFC 9112 section 2.2: empty lines before the request line are ignored.
    let start = request.iter().position(|byte| !matches!(byte, b'\r' | b'\n'));
    let head = start.and_then(|start| request.get(start..)).unwrap_or_default();
    let complete = head.windows(2).any(|pair| pair == b"\n\n")
        || head.windows(3).any(|triple| triple == b"\n\r\n");
    if !complete {
        return (request.len() >= REQUEST_MAX).then(|| {
            Answer::text("431 Request Header Fields Too Large", "request too large\n").bytes(true)
        });
    }
    let line = head.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let Some((method, path)) = std::str::from_utf8(line).ok().and_then(parse_request_line) else {
        return Some(Answer::text("400 Bad Request", "bad request\n").bytes(true));
    };
    if method != "GET" && method != "HEAD" {
        return Some(Answer::text("405 Method Not Allowed", "use GET or HEAD\n").bytes(true));
    }
    let answer = match path {
        "/metrics" => Answer {
            status: "200 OK",
            content_type: "text/plain; version=0.0.4; charset=utf-8",
            body: registry.render(),
        },
        "/healthz" => Answer::text("200 OK", "ok\n"),
        _ => Answer::text("404 Not Found", "only /metrics and /healthz are here\n"),
    };
    Some(answer.bytes(method == "GET"))
}

/// Method and path (no query) of `METHOD target HTTP/1.x`; `None` when it is not that.
fn parse_request_line(line: &str) -> Option<(&str, &str)> {
    let mut parts = line.split(' ');
    let (method, target, version) = (parts.next()?, parts.next()?, parts.next()?);
    let minor = version.strip_prefix("HTTP/1.")?;
    let version_ok = minor.len() == 1 && minor.bytes().all(|byte| byte.is_ascii_digit());
    let method_ok = !method.is_empty() && method.bytes().all(|byte| byte.is_ascii_uppercase());
    if parts.next().is_some() || !version_ok || !method_ok {
        return None;
    }
    let path = if target.starts_with('/') || target == "*" {
        target
    } else {
        // RFC 9112 section 3.2.2: a server accepts the absolute form too.
        let rest = target.strip_prefix("http://")?;
        rest.find('/').and_then(|slash| rest.get(slash..)).unwrap_or("/")
    };
    Some((method, path.split('?').next().unwrap_or(path)))
}

struct Answer {
    status: &'static str,
    content_type: &'static str,
    body: String,
}

impl Answer {
    fn text(status: &'static str, body: &str) -> Self {
        Self { status, content_type: "text/plain; charset=utf-8", body: body.to_owned() }
    }

    fn bytes(&self, with_body: bool) -> Vec<u8> {
        let mut out = format!(
            "HTTP/1.1 {}\r\nContent-Type: {}\r\nContent-Length: {}\r\nConnection: close\r\n",
            self.status,
            self.content_type,
            self.body.len()
        );
        if self.status.starts_with("405") {
            // Writing to a String cannot fail.
            let _ = write!(out, "Allow: GET, HEAD\r\n");
        }
        out.push_str("\r\n");
        if with_body {
            out.push_str(&self.body);
        }
        out.into_bytes()
    }
}

#[cfg(test)]
mod tests;
