use super::super::fields::tests::any_tunnel;
use super::*;
use proptest::prelude::*;

/// Golden: the datagram that the seed's control program sends.
const SEED_ADD: &str = r#"{"op": "add", "tunnel": [{"name": "udp2", "tunnelIP": "10.0.1.1", "netmask": "255.255.255.252", "mtu": 1500, "remoteServer": "172.100.1.2"}]}"#;

fn refusal(text: &str) -> String {
    read(text.as_bytes()).unwrap_err().refusal.to_string()
}

#[test]
fn the_seeds_requests_are_read() {
    let request = read(SEED_ADD.as_bytes()).unwrap();
    assert_eq!(request.id, None);
    let Operation::Add(tunnels) = request.operation else { panic!("no add") };
    assert_eq!(tunnels.len(), 1);
    let del = read(SEED_ADD.replace("add", "del").as_bytes()).unwrap();
    assert_eq!(del.operation, Operation::Del(vec![tunnels[0].name.clone()]));
    // "`del` looks at `name` alone."
    let del = r#"{"op": "del", "tunnel": [{"name": "udp2", "mtu": "much", "what": {}}]}"#;
    assert!(matches!(read(del.as_bytes()).unwrap().operation, Operation::Del(_)));
}

#[test]
fn what_is_no_request_is_refused_by_field() {
    let cases = [
        ("", "request: is not allowed: one JSON object"),
        ("[]", "request: is not allowed: one JSON object"),
        ("{\"op\": \"add\"", "request: is not allowed: one JSON object"),
        ("{} {}", "request: is not allowed: one JSON object"),
        ("{}", "op: is required"),
        (r#"{"op": 1}"#, "op: is not allowed: add, del, update, apply, list, get or stats"),
        (r#"{"op": "ADD"}"#, "op: is not allowed: add, del"),
        (r#"{"op": "add"}"#, "tunnel: is required"),
        (r#"{"op": "add", "tunnel": []}"#, "tunnel: is not allowed: a list of tunnels"),
        (r#"{"op": "add", "tunnel": {}}"#, "tunnel: is not allowed: a list of tunnels"),
        (r#"{"op": "add", "tunnel": [1]}"#, "tunnel[0]: is not allowed: a JSON object"),
        (r#"{"op": "del", "tunnel": [{}]}"#, "tunnel[0].name: is required"),
        (r#"{"op": "list", "tunnel": []}"#, "tunnel: is unknown"),
        (r#"{"op": "list", "after": 7}"#, "after: is not allowed: 1 to 15"),
        (r#"{"op": "apply", "tunnel": [], "dryRun": 1}"#, "dryRun: is not allowed: true or false"),
        (r#"{"op": "list", "id": {}}"#, "id: is not allowed: a whole number"),
        (r#"{"op": "list", "id": 1.5}"#, "id: is not allowed: a whole number"),
    ];
    for (text, expected) in cases {
        let said = refusal(text);
        assert!(said.starts_with(expected), "{text}: {said}");
    }
    let long = format!(r#"{{"op": "list", "id": "{}"}}"#, "x".repeat(65));
    assert!(refusal(&long).starts_with("id: "));
    // As deep as a stack can be filled.
    let deep = format!(r#"{{"op": {}{}}}"#, "[".repeat(30_000), "]".repeat(30_000));
    assert!(refusal(&deep).starts_with("request: "));
    assert!(read(b"{\"op\": \"\xff\"}").is_err());
}

#[test]
fn the_id_survives_a_refusal() {
    let id = |text: &str| match read(text.as_bytes()) {
        Ok(request) => request.id,
        Err(unreadable) => unreadable.id,
    };
    assert_eq!(id(r#"{"op": "list", "id": 7}"#), Some(7.into()));
    assert_eq!(id(r#"{"op": "no", "id": "x"}"#), Some("x".into()));
    assert_eq!(id(r#"{"op": "list", "id": null}"#), None);
}

fn any_request() -> impl Strategy<Value = Request> {
    let tunnels = || proptest::collection::vec(any_tunnel(), 1..4);
    let name = || any_tunnel().prop_map(|tunnel| tunnel.name);
    let names = || proptest::collection::vec(name(), 1..4);
    let operation = prop_oneof![
        tunnels().prop_map(Operation::Add),
        names().prop_map(Operation::Del),
        tunnels().prop_map(|tunnels| {
            let patch =
                |tunnel: &Tunnel| Patch { name: tunnel.name.clone(), given: written(tunnel) };
            Operation::Update(tunnels.iter().map(patch).collect())
        }),
        (proptest::collection::vec(any_tunnel(), 0..4), any::<bool>())
            .prop_map(|(tunnels, dry_run)| Operation::Apply { tunnels, dry_run }),
        proptest::option::of(name()).prop_map(Operation::List),
        names().prop_map(Operation::Get),
        proptest::option::of(name()).prop_map(Operation::Stats),
    ];
    let id = prop_oneof![
        Just(None),
        any::<i64>().prop_map(|id| Some(id.into())),
        "[a-z]{0,9}".prop_map(|id| Some(id.into())),
    ];
    (id, operation).prop_map(|(id, operation)| Request { id, operation })
}

proptest! {
    #[test]
    fn a_request_reads_as_it_is_written(request in any_request()) {
        prop_assert_eq!(read(write(&request).as_bytes()), Ok(request));
    }
}
