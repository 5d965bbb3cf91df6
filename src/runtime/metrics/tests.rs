use super::*;

#[test]
fn renders_families_in_order() {
    let mut registry = Registry::new();
    let clients = registry.gauge("udpgw_clients", "Connected clients.");
    let sent = registry.counter("udpgw_sent_total", "Datagrams sent.");
    let full = registry.labelled_counter("drops_total", "Dropped.", ("reason", "table_full"));
    registry.counter("later_total", "Registered between two drops.");
    registry.labelled_counter("drops_total", "Dropped.", ("reason", "denied"));
    clients.set(3);
    clients.add(-5);
    sent.add(7);
    full.increment();
    assert_eq!(
        registry.render(),
        "# HELP udpgw_clients Connected clients.\n\
         # TYPE udpgw_clients gauge\n\
         udpgw_clients -2\n\
         # HELP udpgw_sent_total Datagrams sent.\n\
         # TYPE udpgw_sent_total counter\n\
         udpgw_sent_total 7\n\
         # HELP drops_total Dropped.\n\
         # TYPE drops_total counter\n\
         drops_total{reason=\"table_full\"} 1\n\
         drops_total{reason=\"denied\"} 0\n\
         # HELP later_total Registered between two drops.\n\
         # TYPE later_total counter\n\
         later_total 0\n"
    );
    assert_eq!(
        registry.summary(),
        "udpgw_clients=-2 udpgw_sent_total=7 drops_total{reason=\"table_full\"}=1"
    );
}

#[test]
fn escapes_help_and_labels() {
    let mut registry = Registry::new();
    registry
        .labelled_counter("odd_total", "a \\ and\na \"quote\"", ("path", "C:\\x\n\"y\""))
        .increment();
    assert_eq!(
        registry.render(),
        "# HELP odd_total a \\\\ and\\na \"quote\"\n\
         # TYPE odd_total counter\n\
         odd_total{path=\"C:\\\\x\\n\\\"y\\\"\"} 1\n"
    );
    assert_eq!(registry.summary().lines().count(), 1);
}

#[test]
fn summary_of_nothing() {
    let mut registry = Registry::new();
    assert_eq!(registry.summary(), "all counters are zero");
    registry.counter("a_total", "A.");
    assert_eq!(registry.summary(), "all counters are zero");
}

#[test]
fn the_same_name_is_the_same_counter() {
    let mut registry = Registry::new();
    let one = registry.labelled_counter("a_total", "A.", ("k", "v"));
    let two = registry.labelled_counter("a_total", "A.", ("k", "v"));
    one.increment();
    assert_eq!(two.get(), 1);
    let info: Vec<_> = registry.families().collect();
    let labels = vec![("k", "v")];
    assert_eq!(info, [FamilyInfo { name: "a_total", kind: Kind::Counter, help: "A.", labels }]);
}

#[test]
#[cfg(debug_assertions)]
fn a_debug_build_refuses_bad_registrations() {
    fn refused(register: fn(&mut Registry)) -> bool {
        std::panic::catch_unwind(|| {
            let mut registry = Registry::new();
            registry.counter("taken_total", "Taken.");
            register(&mut registry);
        })
        .is_err()
    }
    assert!(refused(|r| drop(r.counter("Upper_total", ""))));
    assert!(refused(|r| drop(r.gauge("digit1", ""))));
    assert!(refused(|r| drop(r.gauge("", ""))));
    assert!(refused(|r| drop(r.counter("no_ending", ""))));
    assert!(refused(|r| drop(r.gauge("taken_total", ""))));
    assert!(refused(|r| drop(r.labelled_counter("taken_total", "", ("k", "v")))));
    assert!(refused(|r| drop(r.labelled_counter("a_total", "", ("k-k", "v")))));
    assert!(!refused(|r| drop(r.counter("taken_total", ""))));
}

#[test]
fn adds_from_many_threads_all_count() {
    let mut registry = Registry::new();
    let counter = registry.counter("a_total", "A.");
    let gauge = registry.gauge("g", "G.");
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..10_000 {
                    counter.add(3);
                    gauge.add(2);
                    gauge.add(-1);
                }
            });
        }
    });
    assert_eq!(counter.get(), 240_000);
    assert_eq!(gauge.get(), 80_000);
}

fn answer(request: &str) -> String {
    let mut registry = Registry::new();
    registry.counter("a_total", "A.").add(5);
    String::from_utf8(respond(request.as_bytes(), &registry).unwrap()).unwrap()
}

const EXPOSITION: &str = "# HELP a_total A.\n# TYPE a_total counter\na_total 5\n";

#[test]
fn serves_the_metrics() {
    let expected = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{EXPOSITION}",
        EXPOSITION.len()
    );
    for request in [
        "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "GET /metrics HTTP/1.0\n\n",
        "\r\nGET /metrics?a=b HTTP/1.1\r\n\r\n",
        "GET http://box:9/metrics HTTP/1.1\r\nHost: box:9\r\n\r\nbody",
    ] {
        assert_eq!(answer(request), expected, "{request:?}");
    }
}

#[test]
fn head_has_the_length_and_no_body() {
    let got = answer("HEAD /metrics HTTP/1.1\r\n\r\n");
    assert!(got.contains(&format!("Content-Length: {}\r\n", EXPOSITION.len())), "{got}");
    assert!(got.ends_with("Connection: close\r\n\r\n"), "{got}");
}

#[test]
fn says_that_it_is_healthy() {
    let got = answer("GET /healthz HTTP/1.1\r\n\r\n");
    assert!(got.starts_with("HTTP/1.1 200 OK\r\n"), "{got}");
    assert!(got.contains("Content-Length: 3\r\n"), "{got}");
    assert!(got.ends_with("\r\n\r\nok\n"), "{got}");
}

#[test]
fn refuses_what_it_does_not_serve() {
    for (request, status) in [
        ("GET / HTTP/1.1\r\n\r\n", "404 "),
        ("GET http://box HTTP/1.1\r\n\r\n", "404 "),
        ("GET /metricsx HTTP/1.1\r\n\r\n", "404 "),
        ("POST /metrics HTTP/1.1\r\n\r\n", "405 "),
        ("OPTIONS * HTTP/1.1\r\n\r\n", "405 "),
        ("GET /metrics\r\n\r\n", "400 "),
        ("GET  /metrics HTTP/1.1\r\n\r\n", "400 "),
        ("GET /metrics HTTP/1.1 x\r\n\r\n", "400 "),
        ("GET metrics HTTP/1.1\r\n\r\n", "400 "),
        ("get /metrics HTTP/1.1\r\n\r\n", "400 "),
        ("PRI * HTTP/2.0\r\n\r\n", "400 "),
        ("GET /metrics HTTP/1.\r\n\r\n", "400 "),
    ] {
        let got = answer(request);
        assert_eq!(
            got.strip_prefix("HTTP/1.1 ").map(|rest| &rest[..4]),
            Some(status),
            "{request:?}"
        );
        assert!(got.contains("Connection: close\r\n"), "{got}");
        assert_eq!(got.contains("\r\nAllow: GET, HEAD\r\n"), status == "405 ", "{got}");
    }
    assert!(
        respond(b"\xff\xfe / HTTP/1.1\n\n", &Registry::new())
            .unwrap()
            .starts_with(b"HTTP/1.1 400 ")
    );
}

#[test]
fn waits_for_the_whole_head() {
    let request = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n";
    for cut in 0..request.len() {
        assert_eq!(respond(&request[..cut], &Registry::new()), None, "{cut}");
    }
    assert!(respond(request, &Registry::new()).is_some());
}

#[test]
fn an_endless_head_is_refused() {
    let endless = [b'a'; REQUEST_MAX];
    assert_eq!(respond(&endless[1..], &Registry::new()), None);
    assert!(respond(&endless, &Registry::new()).unwrap().starts_with(b"HTTP/1.1 431 "));
    assert!(
        respond(&[b'\n'; REQUEST_MAX], &Registry::new()).unwrap().starts_with(b"HTTP/1.1 431 ")
    );
}

#[test]
fn a_familys_counts_are_told_apart() {
    let mut registry = Registry::new();
    let [full, _, late] = ["full", "empty", "late"]
        .map(|reason| registry.labelled_counter("udpferry_x_total", "X.", ("reason", reason)));
    registry.counter("udpferry_y_total", "Y.").increment();
    full.add(3);
    late.increment();
    assert_eq!(registry.counted("udpferry_x_total"), [("full", 3), ("late", 1)]);
    assert_eq!(registry.counted("udpferry_y_total"), []);
    assert_eq!(registry.counted("udpferry_z_total"), []);
}
