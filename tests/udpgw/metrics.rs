//! The metrics listener: Prometheus text, health, and scrapers that do not come to an end.

use crate::support::{Client, Echo, Gateway, http_get};
use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::TcpStream;

/// An independent reading of the text format: families, their types, and the value of each series.
fn read_exposition(page: &str) -> HashMap<String, f64> {
    let (mut types, mut helped) = (HashMap::new(), Vec::new());
    let mut values = HashMap::new();
    assert!(page.ends_with('\n'));
    for line in page.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, text) = help.split_once(' ').unwrap();
            assert!(!text.is_empty() && !helped.contains(&name), "{line}");
            helped.push(name);
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').unwrap();
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert!(types.insert(name, kind).is_none(), "{line}");
        } else {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
            let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
            assert!(name.chars().all(is_word), "{line}");
            let labels = labels.strip_suffix('}').unwrap();
            for label in labels.split(',').filter(|label| !label.is_empty()) {
                let (key, text) = label.split_once('=').unwrap();
                assert!(key.chars().all(is_word), "{line}");
                assert!(text.len() >= 2 && text.starts_with('"') && text.ends_with('"'), "{line}");
            }
            let kind = types.get(name).unwrap_or_else(|| panic!("no TYPE before {line}"));
            assert_eq!(*kind == "counter", name.ends_with("_total"), "{line}");
            let value: f64 = value.parse().unwrap_or_else(|error| panic!("{line}: {error}"));
            assert!(values.insert(series.to_owned(), value).is_none(), "twice: {line}");
        }
    }
    assert_eq!(helped.len(), types.len());
    values
}

#[test]
fn metrics_are_prometheus_text_and_health_is_ok() {
    let gateway = Gateway::start(&[]);
    let mut client = gateway.connect();
    client.echo(1, Echo::start().address, b"four words are counted");
    gateway.await_metric("udpferry_udpgw_datagrams_total{direction=\"to-client\"}", 1);
    let values = read_exposition(&http_get(gateway.metrics, "/metrics"));
    let value = |series: &str| values.get(series).copied();
    assert_eq!(value("udpferry_udpgw_clients"), Some(1.0));
    assert_eq!(value("udpferry_udpgw_flows"), Some(1.0));
    assert_eq!(value("udpferry_udpgw_bytes_total{direction=\"to-remote\"}"), Some(22.0));
    for family in udpferry::roles::udpgw::metrics() {
        let of_family = |series: &&String| series.split('{').next() == Some(family.name);
        let count = values.keys().filter(of_family).count();
        assert_eq!(count, family.labels.len().max(1), "{}", family.name);
    }
    assert_eq!(http_get(gateway.metrics, "/healthz"), "ok\n");
    let answer = |request: &str| {
        let mut stream = Client::connect(gateway.metrics).stream;
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    let page = answer("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(page.starts_with("HTTP/1.1 200 OK\r\n"), "{page}");
    assert!(page.contains("\r\nContent-Type: text/plain; version=0.0.4"), "{page}");
    assert!(answer("GET /other HTTP/1.0\r\n\r\n").starts_with("HTTP/1.1 404 "));
    assert!(answer("POST /metrics HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 405 "));
    assert!(answer("\u{16}\u{3}\u{1}\n\n").starts_with("HTTP/1.1 400 "));
}

#[test]
fn idle_scrapes_keep_nobody_out() {
    let gateway = Gateway::start(&[]);
    let mut idle: Vec<Client<TcpStream>> =
        (0..40).map(|_| Client::connect(gateway.metrics)).collect();
    for connection in &mut idle {
        // Some have begun a request. Those pushed out already may hear of it.
        let _ = connection.stream.write_all(b"GET /me");
        assert_eq!(http_get(gateway.metrics, "/healthz"), "ok\n");
    }
    assert!(idle[0].is_closed());
    let mut client = gateway.connect();
    client.echo(1, Echo::start().address, b"served meanwhile");
}
