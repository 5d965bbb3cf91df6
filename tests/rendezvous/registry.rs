//! Several servers that share their rooms through a Redis.

use crate::redis::Redis;
use crate::server::{Member, Server, is_silent_for};
use crate::support::{Scratch, pki};
use crate::support::{await_some, takes_less_than};
use nix::sys::signal::Signal;
use redis::cmd;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::{Duration, Instant};
use udpferry::wire::rendezvous::answer::{Answer, Introduced, parse_answer};
use udpferry::wire::rendezvous::request::{Request, Wish};
use udpferry::wire::rendezvous::{MemberId, RoomId};

const UP: (&str, i64) = ("registry_up", 1);

/// A server that has found the store.
fn shared(redis: &Redis, args: &[&str]) -> Server {
    let option = redis.option();
    let server = Server::start(&[&[option.as_str()], args].concat());
    server.await_metric(UP.0, UP.1);
    server
}

/// Whom a member is told of next: number, who, at which port, and whether it is at the same server.
fn told(member: &Member) -> (u64, MemberId, u16, bool) {
    member.until(|answer| match answer {
        Answer::Introduce(Introduced { introduction, member, endpoints, is_here, .. }) => {
            Some((introduction, member, endpoints.first.port(), is_here))
        }
        _ => None,
    })
}

/// The same, acknowledged, until it is told of `who`.
fn await_told(member: &Member, who: MemberId) -> (u16, bool) {
    loop {
        let (number, about, port, is_here) = told(member);
        member.acknowledge(number);
        if about == who {
            return (port, is_here);
        }
    }
}

fn refresh(member: &Member) {
    member.ask(&Wish::Register { rtt_ms: 0, sealed: b"sealed" });
}

/// Refreshes as clients of a short expiry do, until `member` is told what `wanted` takes.
fn refreshing<T>(members: &[&Member], wanted: impl Fn(&[u8]) -> Option<T>) -> T {
    let found = await_some(|| {
        for member in members {
            refresh(member);
        }
        let member = members[0];
        member.socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let mut bytes = [0; 2048];
        while let Ok(len) = member.socket.recv(&mut bytes) {
            if let Some(Answer::Introduce(of)) = parse_answer(&bytes[..len]) {
                member.acknowledge(of.introduction);
            }
            if let Some(found) = wanted(&bytes[..len]) {
                return Some(found);
            }
        }
        None
    });
    members[0].socket.set_read_timeout(Some(crate::support::PATIENCE)).unwrap();
    found.expect("nobody was told")
}

fn is_introduced(who: MemberId) -> impl Fn(&[u8]) -> Option<()> {
    move |bytes| match parse_answer(bytes) {
        Some(Answer::Introduce(of)) if of.member == who => Some(()),
        _ => None,
    }
}

fn is_gone(who: MemberId) -> impl Fn(&[u8]) -> Option<()> {
    move |bytes| match parse_answer(bytes) {
        Some(Answer::Gone { member }) if member == who => Some(()),
        _ => None,
    }
}

fn rooms(redis: &Redis) -> Vec<String> {
    redis.ask(cmd("KEYS").arg("udpferry:1:room:*"))
}

#[test]
fn members_of_two_servers_meet() {
    let redis = Redis::start();
    let (here, there) = (shared(&redis, &[]), shared(&redis, &[]));
    let one = Member::new(here.address, 1);
    let (one_id, _) = one.register();
    let other = Member::new(there.address, 1);
    let begin = Instant::now();
    let (other_id, _) = other.register();
    assert_eq!(await_told(&one, other_id), (other.endpoint().port(), false));
    assert_eq!(await_told(&other, one_id), (one.endpoint().port(), false));
    // At once, and not with a refresh.
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    assert_eq!((here.metric("members"), here.metric("members_elsewhere")), (1, 1));
    // A refresh is no news, and says how many there are.
    assert_eq!(one.register(), (one_id, 2));
    assert!(is_silent_for(&other.socket, Duration::from_millis(300)));
    // A third one, of this server: it hears of both.
    let third = Member::entered(here.address, 1);
    let mut heard = [told(&third), told(&third)].map(|(number, who, _, is_here)| {
        third.acknowledge(number);
        (who, is_here)
    });
    heard.sort_by_key(|(_, is_here)| *is_here);
    assert_eq!(heard, [(other_id, false), (one_id, true)]);
    // Another room is another world.
    let stranger = Member::entered(there.address, 2);
    assert!(is_silent_for(&stranger.socket, Duration::from_millis(300)));
    // Whoever leaves is gone at both.
    other.ask(&Wish::Leave);
    assert_eq!(one.gone(), other_id);
    there.await_metric("members", 1);
    assert_eq!(there.metric("registry_failures_total{reason=\"lost\"}"), 0);
}

#[test]
fn a_call_goes_to_the_other_server() {
    let redis = Redis::start();
    let (here, there) = (shared(&redis, &[]), shared(&redis, &["--relay"]));
    let one = Member::new(here.address, 1);
    let (one_id, _) = one.register();
    let other = Member::new(there.address, 1);
    let (other_id, _) = other.register();
    await_told(&one, other_id);
    await_told(&other, one_id);
    one.ask(&Wish::Call { member: other_id });
    await_told(&one, other_id);
    await_told(&other, one_id);
    one.ask(&Wish::Call { member: MemberId([9; 8]) });
    assert_eq!(one.gone(), MemberId([9; 8]));
    // The relay is for those of one server.
    other.send(&Request::Relay { member: one_id, payload: b"x" });
    there.await_dropped("relay-not-there", 1);
}

#[test]
fn members_of_a_killed_server_go_on_at_the_other() {
    let redis = Redis::start();
    let (mut here, there) = (shared(&redis, &["--expiry=4"]), shared(&redis, &["--expiry=4"]));
    let mut one = Member::new(here.address, 1);
    let (one_id, _) = one.register();
    let silent = Member::new(here.address, 1);
    let (silent_id, _) = silent.register();
    let other = Member::new(there.address, 1);
    let (other_id, _) = other.register();
    await_told(&one, other_id);
    await_told(&other, one_id);
    here.service.signal(Signal::SIGKILL);
    here.service.wait();
    // The same member, by another NAT mapping perhaps, at the other server.
    let moved = Member::new(there.address, 1);
    one.socket = moved.socket;
    one.pass = moved.pass;
    let (again, _) = one.register();
    assert_eq!(again, one_id);
    assert_eq!(await_told(&other, one_id), (one.endpoint().port(), true));
    assert_eq!(await_told(&one, other_id), (other.endpoint().port(), true));
    // Who was at the killed one alone is gone when its time is over; who has moved is not.
    let gone = refreshing(&[&other, &one], |bytes| match parse_answer(bytes) {
        Some(Answer::Gone { member }) => Some(member),
        _ => None,
    });
    assert_eq!(gone, silent_id);
    assert_eq!((there.metric("members"), there.metric("members_elsewhere")), (2, 0));
}

#[test]
fn what_is_written_down_lapses_with_its_server() {
    let redis = Redis::start();
    let mut server = shared(&redis, &["--expiry=4"]);
    let member = Member::entered(server.address, 1);
    let key = await_some(|| rooms(&redis).pop()).expect("nothing is written down");
    assert_eq!(key, format!("udpferry:1:room:{}", "01".repeat(16)));
    let ttl: i64 = redis.ask(cmd("PTTL").arg(&key));
    assert!((1..=4000).contains(&ttl), "{ttl}");
    // A refresh makes it last.
    let begin = Instant::now();
    let lasted = await_some(|| {
        refresh(&member);
        member.until(|answer| matches!(answer, Answer::Registered { .. }).then_some(()));
        (begin.elapsed() > Duration::from_secs(5)).then(|| rooms(&redis).len())
    });
    assert_eq!(lasted, Some(1));
    server.service.signal(Signal::SIGKILL);
    server.service.wait();
    await_some(|| rooms(&redis).is_empty().then_some(())).expect("it lasts for ever");
}

#[test]
fn without_its_store_a_server_goes_on_and_with_it_again_all_meet() {
    let mut redis = Redis::start();
    let (here, there) = (shared(&redis, &["--expiry=8"]), shared(&redis, &["--expiry=8"]));
    let one = Member::new(here.address, 1);
    let (one_id, _) = one.register();
    redis.kill();
    here.await_metric("registry_up", 0);
    there.await_metric("registry_up", 0);
    // Local rooms are as ever.
    let two = Member::new(here.address, 1);
    let (two_id, members) = two.register();
    assert_eq!(members, 2);
    await_told(&one, two_id);
    await_told(&two, one_id);
    let other = Member::new(there.address, 1);
    let (other_id, members) = other.register();
    assert_eq!(members, 1);
    let dropped = || (here.metric("registry_dropped_total{reason=\"down\"}") > 0).then_some(());
    await_some(dropped).expect("nothing was dropped");
    assert!(here.metric("registry_failures_total{reason=\"lost\"}") > 0);
    // It comes back, and has forgotten everything.
    redis.start_again();
    refreshing(&[&one, &two, &other], is_introduced(other_id));
    refreshing(&[&other, &one, &two], is_introduced(two_id));
    assert_eq!(here.metric("registry_up"), 1);
    // And once more, for longer than members last: who is elsewhere is gone.
    redis.kill();
    refreshing(&[&one, &two, &other], is_gone(other_id));
    assert_eq!(here.metric("members"), 2);
}

#[test]
fn a_store_may_come_later() {
    let mut redis = Redis::not_started();
    let option = redis.option();
    let (here, there) = (Server::start(&[&option]), Server::start(&[&option]));
    let one = Member::entered(here.address, 1);
    let failed = || here.metric("registry_failures_total{reason=\"connect\"}") > 0;
    await_some(|| failed().then_some(())).expect("it has not tried");
    redis.start_again();
    here.await_metric(UP.0, UP.1);
    there.await_metric(UP.0, UP.1);
    let other = Member::new(there.address, 1);
    let (other_id, _) = other.register();
    refreshing(&[&one], is_introduced(other_id));
}

#[test]
fn a_store_that_hangs_stops_nothing() {
    takes_less_than(Duration::from_millis(250), stop_beside_a_store_that_hangs);
}

fn stop_beside_a_store_that_hangs() -> Duration {
    let redis = Redis::start();
    let server = shared(&redis, &[]);
    let one = Member::new(server.address, 1);
    redis.signal(Signal::SIGSTOP);
    let (one_id, _) = one.register();
    let two = Member::new(server.address, 1);
    let (two_id, _) = two.register();
    await_told(&one, two_id);
    await_told(&two, one_id);
    server.await_metric("registry_up", 0);
    assert_eq!(server.metric("registry_failures_total{reason=\"silent\"}"), 1);
    let (status, took) = server.service.stop();
    assert!(status.success());
    redis.signal(Signal::SIGCONT);
    took
}

#[test]
fn what_strangers_write_into_the_store_harms_nobody() {
    let redis = Redis::start();
    let (here, there) = (shared(&redis, &[]), shared(&redis, &[]));
    let one = Member::new(here.address, 1);
    let (one_id, _) = one.register();
    let key = await_some(|| rooms(&redis).pop()).unwrap();
    let mut connection = redis.connection();
    let lapses = |ms: u64| format!("{:013}{ms:013}", 1);
    let far = 9_999_999_999_999;
    let channels: Vec<String> = redis.ask(cmd("PUBSUB").arg("CHANNELS").arg("udpferry:1:server:*"));
    assert_eq!(channels.len(), 2);
    let mut seed = 1_u64;
    let mut random = |len: usize| -> Vec<u8> {
        (0..len)
            .map(|_| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                u8::try_from(seed >> 56).unwrap()
            })
            .collect()
    };
    // A key of another kind, and a hash of far too many.
    cmd("SET").arg(&key).arg("text").exec(&mut connection).unwrap();
    refresh(&one);
    await_some(|| {
        let kind: String = cmd("TYPE").arg(&key).query(&mut connection).unwrap();
        (kind == "hash").then_some(())
    })
    .expect("the key stays what it was");
    let mut many = cmd("HSET");
    many.arg(&key);
    for number in 0..2000_u64 {
        many.arg([&number.to_be_bytes()[..], &[7; 8]].concat()).arg(random(40));
    }
    many.exec(&mut connection).unwrap();
    // Fields and values of every wrong length, times that are none, and records that are none.
    let now: (u64, u64) = redis.ask(&cmd("TIME"));
    let soon = now.0 * 1000 + 50_000;
    for len in [0, 1, 15, 16, 17, 40] {
        for value in [
            random(0),
            random(12),
            random(26),
            random(585),
            vec![b'9'; 1 << 20],
            format!("{:013}{:013}", "inf", "nan").into_bytes(),
            [lapses(far).as_bytes(), &random(60)].concat(),
            [lapses(soon).as_bytes(), &random(60)].concat(),
            [lapses(soon).as_bytes(), &[]].concat(),
        ] {
            let mut put = cmd("HSET");
            put.arg(&key).arg(random(len)).arg(value).exec(&mut connection).unwrap();
        }
        refresh(&one);
    }
    // Messages of every kind and length.
    for channel in &channels {
        for number in 0..3000 {
            let kind = u8::try_from(number % 5).unwrap();
            let body = random(number % 700);
            let message = [&[kind][..], &one.room.0, &body].concat();
            cmd("PUBLISH").arg(channel).arg(message).exec(&mut connection).unwrap();
        }
        cmd("PUBLISH").arg(channel).arg(vec![0_u8; 1 << 20]).exec(&mut connection).unwrap();
    }
    let malformed =
        || (here.metric("registry_dropped_total{reason=\"malformed\"}") > 1000).then_some(());
    await_some(malformed).expect("nothing was counted");
    // All is as it was.
    let other = Member::new(there.address, 1);
    let (other_id, _) = other.register();
    refreshing(&[&one], is_introduced(other_id));
    refreshing(&[&other], is_introduced(one_id));
    for server in [&here, &there] {
        assert_eq!(server.metric("registry_up"), 1);
        assert_eq!(server.metric("registry_failures_total{reason=\"lost\"}"), 0);
    }
    let fields: i64 = redis.ask(cmd("HLEN").arg(&key));
    assert!(fields < 20, "{fields} fields are left");
}

#[test]
fn scripts_that_the_store_was_told_to_forget_are_loaded_again() {
    let redis = Redis::start();
    let (here, there) = (shared(&redis, &[]), shared(&redis, &[]));
    redis.ask::<()>(cmd("SCRIPT").arg("FLUSH"));
    let one = Member::entered(here.address, 1);
    let other = Member::new(there.address, 1);
    let (other_id, _) = other.register();
    refreshing(&[&one, &other], is_introduced(other_id));
    assert!(here.metric("registry_failures_total{reason=\"refused\"}") >= 1);
}

/// Failed attempts at the store, of whatever kind.
fn attempts(server: &Server) -> i64 {
    ["lookup", "connect", "refused", "silent", "lost"]
        .map(|reason| server.metric(&format!("registry_failures_total{{reason=\"{reason}\"}}")))
        .iter()
        .sum()
}

#[test]
fn a_store_that_takes_no_writes_is_asked_ever_more_rarely() {
    let redis = Redis::start();
    let here = shared(&redis, &[]);
    let one = Member::new(here.address, 1);
    one.register();
    // Nobody is at that port: it stays a replica, and read-only.
    let nobody = crate::support::free_port();
    redis.ask::<()>(cmd("REPLICAOF").arg("127.0.0.1").arg(nobody));
    let there = Server::start(&[&redis.option()]);
    refresh(&one);
    here.await_metric("registry_up", 0);
    there.service.await_log("read only replica");
    // 250 ms, 500 ms, 1 s, 2 s, a fifth more or less.
    let begin = Instant::now();
    let before = attempts(&there);
    let is_up = |server: &Server| server.metric("registry_up") == 1;
    let was_up = await_some(|| {
        let up = is_up(&here) || is_up(&there);
        (up || begin.elapsed() > Duration::from_secs(4)).then_some(up)
    });
    assert_eq!(was_up, Some(false), "it seems to be there");
    assert!(attempts(&there) - before <= 4, "{} attempts", attempts(&there) - before);
    assert_eq!(there.metric("registry_written_total"), 0);
    redis.ask::<()>(cmd("REPLICAOF").arg("NO").arg("ONE"));
    here.await_metric(UP.0, UP.1);
    there.await_metric(UP.0, UP.1);
    let other = Member::new(there.address, 1);
    let (other_id, _) = other.register();
    refreshing(&[&one, &other], is_introduced(other_id));
    // What was written to see whether it can be is gone.
    assert_eq!(rooms(&redis).len(), 1);
}

/// As docs/protocols/rendezvous.md has it.
const RIGHTS: &str = "~udpferry:1:room:* &udpferry:1:server:* +hello +auth +ping +select \
    +client|setname +script|load +evalsha +subscribe +publish +time +type +del +hlen +hgetall +hset \
    +hdel +hkeys +pttl +pexpire";

#[test]
fn a_user_with_few_rights_is_enough_and_another_is_refused() {
    let redis = Redis::start();
    let document = include_str!("../../docs/protocols/rendezvous.md");
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words(document).contains(&words(RIGHTS)), "the document says something else");
    let mut user = cmd("ACL");
    user.arg("SETUSER").arg("ferry").arg("on").arg(">a b:c@d");
    for right in RIGHTS.split_whitespace() {
        user.arg(right);
    }
    redis.ask::<()>(&user);
    let place = format!("127.0.0.1:{}/3", redis.port);
    let start = |who: &str| Server::start(&[&format!("--registry=redis://{who}@{place}")]);
    let (here, there) = (start("ferry:a%20b%3Ac%40d"), start("ferry:a%20b%3Ac%40d"));
    here.await_metric(UP.0, UP.1);
    there.await_metric(UP.0, UP.1);
    let one = Member::new(here.address, 1);
    let (one_id, _) = one.register();
    let other = Member::new(there.address, 1);
    let (other_id, _) = other.register();
    await_told(&one, other_id);
    await_told(&other, one_id);
    other.ask(&Wish::Call { member: one_id });
    await_told(&one, other_id);
    other.ask(&Wish::Leave);
    assert_eq!(one.gone(), other_id);
    assert_eq!(here.metric("registry_dropped_total{reason=\"refused\"}"), 0);
    let refused = start("ferry:wrong");
    let counted = || refused.metric("registry_failures_total{reason=\"refused\"}") > 0;
    await_some(|| counted().then_some(())).expect("it was not refused");
    let line = refused.service.await_log("registry at redis://127.0.0.1");
    assert!(line.contains("WRONGPASS: the user or password is wrong"), "{line}");
    assert!(!line.contains("ferry:"), "{line}");
    let member = Member::new(refused.address, 1);
    assert_eq!(member.register().1, 1);
}

#[test]
fn a_user_that_may_not_subscribe_is_refused_ever_more_rarely() {
    let redis = Redis::start();
    let mut user = cmd("ACL");
    user.arg("SETUSER").arg("ferry").arg("on").arg(">s3cret").arg("resetchannels");
    for right in RIGHTS.split_whitespace().filter(|right| !right.starts_with('&')) {
        user.arg(right);
    }
    redis.ask::<()>(&user);
    let url = format!("--registry=redis://ferry:s3cret@127.0.0.1:{}", redis.port);
    let server = Server::start(&[&url]);
    let line = server.service.await_log("NOPERM: ");
    assert!(line.contains("channel") && line.contains("docs/protocols/rendezvous.md"), "{line}");
    let (begin, before) = (Instant::now(), attempts(&server));
    await_some(|| (begin.elapsed() > Duration::from_secs(3)).then_some(())).unwrap();
    assert!(attempts(&server) - before <= 4, "{} attempts", attempts(&server) - before);
    assert_eq!(server.metric("registry_up"), 0);
    assert!(!server.service.log().contains("s3cret"));
    redis.ask::<()>(cmd("ACL").arg("SETUSER").arg("ferry").arg("&udpferry:1:server:*"));
    server.await_metric(UP.0, UP.1);
}

#[test]
fn a_store_that_is_too_old_is_told_no_password_in_the_log() {
    // As Redis 5.0 answers what it does not know.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut asked = [0; 4096];
            let len = stream.read(&mut asked).unwrap_or(0);
            let asked = String::from_utf8_lossy(&asked[..len]).into_owned();
            let words: Vec<&str> =
                asked.split("\r\n").filter(|it| !it.starts_with(['$', '*'])).collect();
            let args = words[1..].iter().take(6).copied().collect::<Vec<_>>().join("`, `");
            let (name, rest) = (words[0], "with args beginning with:");
            let answer = format!("-ERR unknown command `{name}`, {rest} `{args}`, \r\n");
            assert!(answer.contains("s3cret"), "{answer}");
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    let url = format!("--registry=redis://:s3cret@127.0.0.1:{port}");
    let server = Server::start(&[&url]);
    let line = server.service.await_log("registry at redis://127.0.0.1");
    assert!(line.contains("ERR: it does not know HELLO: Redis 6.0 or later is needed"), "{line}");
    let counted = || server.metric("registry_failures_total{reason=\"refused\"}") > 1;
    await_some(|| counted().then_some(())).expect("it has not tried again");
    assert!(!server.service.log().contains("s3cret"), "{}", server.service.log());
}

#[test]
fn a_store_may_be_reached_over_tls() {
    let authority = pki::authority("the test's");
    let issued = authority.issue();
    let scratch = Scratch::new();
    let file = |name: &str, content: Vec<u8>| {
        std::fs::write(scratch.path(name), content).unwrap();
        scratch.path(name).to_str().unwrap().to_owned()
    };
    let tls_port = crate::support::free_port().to_string();
    let ca = file("ca", authority.pem());
    let (certificate, key) = (file("certificate", issued.pem()), file("key", issued.key_pem()));
    let redis = Redis::start_with(&[
        ("--tls-port", &tls_port),
        ("--tls-auth-clients", "no"),
        ("--tls-ca-cert-file", &ca),
        ("--tls-cert-file", &certificate),
        ("--tls-key-file", &key),
    ]);
    let url = format!("--registry=rediss://127.0.0.1:{tls_port}");
    let start = |ca: &str| {
        Server::start_with(&[&url], |command| {
            command.env("SSL_CERT_FILE", ca).env("SSL_CERT_DIR", "/nonexistent");
        })
    };
    let (here, there) = (start(&ca), start(&ca));
    here.await_metric(UP.0, UP.1);
    there.await_metric(UP.0, UP.1);
    let one = Member::entered(here.address, 1);
    let other = Member::new(there.address, 1);
    let (other_id, _) = other.register();
    await_told(&one, other_id);
    // Whom nobody has signed is not believed.
    let suspicious = start("/dev/null");
    let line = suspicious.service.await_log("registry at rediss://127.0.0.1");
    assert!(line.contains("certificate"), "{line}");
    assert_eq!(suspicious.metric("registry_up"), 0);
    drop(redis);
}

#[test]
fn four_hundred_members_of_two_servers_meet_in_pairs() {
    const PAIRS: u16 = 200;
    let redis = Redis::start();
    let args = ["--source-rate=0", "--udp-buffer=16M"];
    let (here, there) = (shared(&redis, &args), shared(&redis, &args));
    let room = |number: u16| {
        let mut room = [0; 16];
        room[..2].copy_from_slice(&number.to_be_bytes());
        RoomId(room)
    };
    // A port that is used again is that of a member that has not left.
    let mut all = Vec::new();
    for first in (0..PAIRS).step_by(50) {
        let pairs: Vec<(Member, Member)> = (first..first + 50)
            .map(|number| {
                let mut pair = (Member::new(here.address, 1), Member::new(there.address, 1));
                pair.0.room = room(number);
                pair.1.room = room(number);
                pair
            })
            .collect();
        let ids: Vec<_> =
            pairs.iter().map(|(one, other)| (one.register().0, other.register().0)).collect();
        for ((one, other), (one_id, other_id)) in pairs.iter().zip(ids) {
            assert_eq!(told(one).1, other_id);
            assert_eq!(told(other).1, one_id);
        }
        all.extend(pairs);
    }
    for server in [&here, &there] {
        for reason in ["down", "queue-full", "answers-full", "refused", "malformed", "no-room"] {
            let dropped = format!("registry_dropped_total{{reason=\"{reason}\"}}");
            assert_eq!(server.metric(&dropped), 0, "{reason}");
        }
    }
}
