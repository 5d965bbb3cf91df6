use super::*;
use crate::state::seeded::Seeded;
use std::collections::VecDeque;

const COOKIE: Cookie = Cookie([7; 16]);
const NONE: Cookie = Cookie([0; 16]);
const KEEPALIVE: Duration = Duration::from_secs(15);
/// No jitter.
const MIDDLE: u16 = 1 << 15;

#[allow(clippy::disallowed_methods)] // Tests count from whatever instant they start at.
fn start() -> Instant {
    Instant::now()
}

fn ms(number: u64) -> Duration {
    Duration::from_millis(number)
}

fn seconds(number: u64) -> Duration {
    Duration::from_secs(number)
}

fn server(number: u8) -> SocketAddr {
    ([192, 0, 2, number], 5555).into()
}

fn hello(to: SocketAddr, tx: u64, cookie: Cookie) -> Step {
    Step::Hello { to, tx, cookie }
}

fn keepalive(tx: u64) -> Step {
    Step::Keepalive { to: server(1), tx }
}

/// Up since `now`.
fn up(now: Instant) -> Connection {
    let mut connection = Connection::new(now);
    assert_eq!(connection.poll(now, 0), Some(Step::Resolve));
    connection.resolved(now, vec![server(1)]);
    assert_eq!(connection.poll(now, 1), Some(hello(server(1), 1, NONE)));
    assert!(connection.on_cookie(now, 1, COOKIE));
    assert_eq!(connection.poll(now, 2), Some(hello(server(1), 2, COOKIE)));
    assert!(connection.on_welcome(now, 2, KEEPALIVE));
    assert_eq!(connection.poll(now, 3), None);
    connection
}

#[test]
fn comes_up_in_two_round_trips_and_says_so_every_quarter_of_a_minute() {
    let now = start();
    let mut connection = up(now);
    assert!(connection.is_up());
    assert_eq!(connection.next_deadline(), Some(now + KEEPALIVE));
    let now = now + KEEPALIVE;
    assert_eq!(connection.poll(now, 4), Some(keepalive(4)));
    assert_eq!(connection.poll(now, 5), None);
    assert!(!connection.on_alive(now, 3), "an answer to something else");
    assert!(connection.on_alive(now + ms(30), 4));
    assert!(!connection.on_alive(now + ms(30), 4), "an answer counts once");
    assert_eq!(connection.next_deadline(), Some(now + ms(30) + KEEPALIVE));
}

#[test]
fn answers_to_another_question_count_for_nothing() {
    let now = start();
    let mut connection = Connection::new(now);
    connection.poll(now, 0);
    connection.resolved(now, vec![server(1)]);
    connection.poll(now, 1);
    assert!(!connection.on_cookie(now, 2, COOKIE));
    assert!(!connection.on_welcome(now, 2, KEEPALIVE));
    assert!(!connection.on_refused(now, 2, MIDDLE));
    assert!(!connection.on_alive(now, 1));
    assert!(!connection.on_who_are_you(now) && !connection.on_goodbye(now, MIDDLE));
    assert_eq!(connection.poll(now, 2), None);
    let mut connection = up(now);
    assert!(!connection.on_welcome(now, 2, KEEPALIVE) && !connection.on_refused(now, 2, MIDDLE));
    assert!(connection.is_up());
}

#[test]
fn every_address_is_tried_and_then_the_name_is_looked_up_again() {
    let start = start();
    let mut connection = Connection::new(start);
    assert_eq!(connection.poll(start, 0), Some(Step::Resolve));
    assert_eq!(connection.next_deadline(), None, "a lookup takes its time");
    connection.resolved(start, vec![server(1), server(2)]);
    let mut sent = Vec::new();
    let mut looked_up = Vec::new();
    while sent.len() < 16 {
        let now = connection.next_deadline().unwrap();
        while let Some(step) = connection.poll(now, 1 << 63) {
            let at = (now - start).as_millis() + 5;
            match step {
                Step::Hello { to, cookie: NONE, .. } => sent.push((at / 10 * 10, to == server(2))),
                Step::Resolve => looked_up.push(at / 10 * 10),
                step => panic!("{step:?}"),
            }
        }
    }
    let first = [0, 250, 750, 1750].map(|at| (at, false));
    let second = [3750, 4000, 4500, 5500].map(|at| (at, true));
    assert_eq!(sent[..8], [first, second].concat());
    // A second's pause; the addresses are tried while the name is looked up.
    assert_eq!(sent[8], (8500, false));
    assert_eq!(looked_up, [8500], "one lookup at a time");
}

#[test]
fn a_repeated_hello_has_the_number_of_the_first_so_that_late_answers_count() {
    let now = start();
    let mut connection = Connection::new(now);
    connection.poll(now, 0);
    connection.resolved(now, vec![server(1)]);
    assert_eq!(connection.poll(now, 1), Some(hello(server(1), 1, NONE)));
    assert_eq!(connection.poll(now + ms(250), 2), Some(hello(server(1), 1, NONE)));
    assert!(connection.on_cookie(now + ms(700), 1, COOKIE));
    assert_eq!(connection.poll(now + ms(700), 3), Some(hello(server(1), 3, COOKIE)));
    assert_eq!(connection.next_deadline(), Some(now + ms(950)));
}

#[test]
fn a_server_that_takes_no_cookie_is_not_asked_in_a_whirl() {
    let start = start();
    let mut connection = Connection::new(start);
    connection.poll(start, 0);
    connection.resolved(start, vec![server(1)]);
    let (mut now, mut tx, mut hellos) = (start, 1, 0);
    while now < start + seconds(60) {
        while let Some(step) = connection.poll(now, tx) {
            match step {
                Step::Hello { tx, .. } => {
                    hellos += 1;
                    assert!(connection.on_cookie(now, tx, COOKIE));
                }
                step => assert_eq!(step, Step::Resolve),
            }
            tx += 1;
        }
        if connection.next_deadline().is_none_or(|next| next <= now) {
            connection.resolved(now, vec![server(1)]);
        }
        now = connection.next_deadline().unwrap();
    }
    assert!((10..40).contains(&hellos), "{hellos} in a minute");
}

#[test]
fn a_refused_client_asks_ever_more_rarely() {
    let start = start();
    let mut connection = Connection::new(start);
    connection.poll(start, 0);
    connection.resolved(start, vec![server(1)]);
    let mut now = start;
    let mut refused = Vec::new();
    for tx in 1..8 {
        while let Some(step) = connection.poll(now, tx) {
            if let Step::Hello { tx, .. } = step {
                assert!(connection.on_refused(now, tx, MIDDLE));
                refused.push(((now - start).as_millis() + 5) / 100);
            }
        }
        connection.resolved(now, vec![server(1)]);
        assert_eq!(connection.poll(now, tx), None, "an answer of the resolver is no reason");
        now = connection.next_deadline().unwrap();
    }
    assert_eq!(refused, [0, 10, 30, 70, 150, 250, 350]);
}

#[test]
fn a_silent_server_is_lost_after_three_keepalives() {
    let start = start();
    let mut connection = up(start);
    let mut sent = Vec::new();
    loop {
        let now = connection.next_deadline().unwrap();
        match connection.poll(now, 9) {
            Some(Step::Keepalive { tx: 9, .. }) => sent.push((now - start).as_secs()),
            Some(Step::Lost) => {
                assert_eq!(now - start, seconds(21));
                // It looks the name up again, and asks where it was meanwhile.
                assert_eq!(connection.poll(now, 10), Some(Step::Resolve));
                assert_eq!(connection.poll(now, 11), Some(hello(server(1), 11, NONE)));
                break;
            }
            step => panic!("{step:?}"),
        }
    }
    assert_eq!(sent, [15, 17, 19]);
}

#[test]
fn a_change_of_the_network_is_looked_into_at_once() {
    let start = start();
    let mut connection = up(start);
    let change = start + seconds(5);
    connection.on_network_change(change);
    let mut now = change;
    for _ in 0..3 {
        assert_eq!(connection.poll(now, 9), Some(keepalive(9)));
        now = connection.next_deadline().unwrap();
    }
    assert_eq!(connection.poll(now, 9), Some(Step::Lost));
    assert_eq!(now - change, seconds(3));
    // The path is still there: all is well.
    let mut connection = up(start);
    connection.on_network_change(change);
    connection.poll(change, 9);
    connection.on_alive(change + ms(20), 9);
    assert_eq!(connection.next_deadline(), Some(change + ms(20) + KEEPALIVE));
    // A client in its pause does not wait for its end.
    let mut connection = Connection::new(start);
    connection.poll(start, 0);
    connection.unresolved(start, MIDDLE);
    assert_eq!(connection.poll(start + ms(500), 1), None);
    connection.on_network_change(start + ms(500));
    assert_eq!(connection.poll(start + ms(500), 1), Some(Step::Resolve));
}

#[test]
fn a_network_that_changes_all_the_time_does_not_make_it_noisy() {
    let start = start();
    let mut connection = up(start);
    let mut steps = Vec::new();
    for at in 0..1000 {
        let now = start + ms(at * 10);
        connection.on_network_change(now);
        while let Some(step) = connection.poll(now, 9) {
            steps.push((at, step));
        }
    }
    let is_message = |step: &Step| matches!(step, Step::Hello { .. } | Step::Keepalive { .. });
    let sent = steps.iter().filter(|(_, step)| is_message(step)).count();
    assert!((20..=41).contains(&sent), "{sent} in ten seconds");
    let lost = steps.iter().position(|(_, step)| *step == Step::Lost).unwrap();
    assert!((300..=325).contains(&steps[lost].0), "lost after {} times 10 ms", steps[lost].0);
    let resolves = steps.iter().filter(|(_, step)| *step == Step::Resolve).count();
    assert!(resolves > 0, "the name is looked up again");
}

#[test]
fn who_are_you_is_answered_with_a_hello_but_not_every_time() {
    let now = start();
    let mut connection = up(now);
    assert!(connection.on_who_are_you(now + seconds(1)));
    assert!(!connection.on_who_are_you(now + seconds(1)), "it is on its way");
    let now = now + seconds(1);
    assert_eq!(connection.poll(now, 5), Some(hello(server(1), 5, NONE)));
    connection.on_cookie(now, 5, COOKIE);
    connection.poll(now, 6);
    assert!(connection.on_welcome(now + ms(2), 6, KEEPALIVE));
    assert!(connection.on_who_are_you(now + ms(3)));
    assert_eq!(connection.poll(now + ms(249), 7), None);
    assert_eq!(connection.poll(now + ms(250), 7), Some(hello(server(1), 7, NONE)));
}

#[test]
fn a_server_that_says_goodbye_is_asked_again_soon() {
    let now = start();
    let mut connection = up(now);
    assert!(connection.on_goodbye(now, MIDDLE));
    assert!(!connection.on_goodbye(now, MIDDLE));
    assert_eq!(connection.poll(now, 5), Some(Step::Resolve));
    assert_eq!(connection.poll(now, 5), None);
    let next = connection.next_deadline().unwrap();
    assert_eq!(((next - now).as_millis() + 5) / 10, 25);
    assert_eq!(connection.poll(next, 5), Some(hello(server(1), 5, NONE)));
}

#[test]
fn a_moved_server_is_found_by_its_name() {
    let now = start();
    let mut connection = up(now);
    connection.on_goodbye(now, MIDDLE);
    assert_eq!(connection.poll(now, 5), Some(Step::Resolve));
    connection.resolved(now, vec![server(3)]);
    assert_eq!(connection.poll(now, 6), Some(hello(server(3), 6, NONE)));
    // While it is up, another address of the name is for later.
    let mut connection = up(now);
    connection.on_goodbye(now, MIDDLE);
    connection.poll(now, 5);
    let later = now + ms(300);
    connection.poll(later, 6);
    connection.on_welcome(later, 6, KEEPALIVE);
    connection.resolved(later, vec![server(3), server(4)]);
    assert!(connection.is_up());
    assert_eq!(connection.server(), Some(server(1)));
    assert_eq!(connection.servers(), [server(3), server(4), server(1)]);
}

#[test]
fn a_resolver_out_of_reach_holds_nobody_up_who_knows_an_address() {
    let now = start();
    let mut connection = up(now);
    connection.on_goodbye(now, MIDDLE);
    assert_eq!(connection.poll(now, 5), Some(Step::Resolve));
    let now = now + ms(300);
    assert_eq!(connection.poll(now, 6), Some(hello(server(1), 6, NONE)));
    connection.unresolved(now, MIDDLE);
    assert!(connection.on_welcome(now, 6, KEEPALIVE));
}

/// A network that loses, delays, and a server that is away now and then: whenever both have been
/// well for a while the connection is up, and it never says more than a few messages a second.
#[test]
fn it_comes_up_again_after_whatever_happens() {
    for seed in 0..100 {
        let mut seeded = Seeded::new(seed);
        let begin = start();
        let mut connection = Connection::new(begin);
        let mut on_the_way: VecDeque<(Instant, Step)> = VecDeque::new();
        let (mut is_away, mut knows_it, mut loss) = (false, false, 0);
        let mut well_since = begin;
        let mut sent_in_second = 0;
        for tick in 0..60_000_u64 {
            let now = begin + ms(tick * 10);
            if tick % 100 == 0 {
                assert!(sent_in_second <= 12, "seed {seed}: {sent_in_second} in a second");
                sent_in_second = 0;
            }
            // The world changes every half a minute, on average.
            if seeded.below(3000) == 0 {
                is_away = seeded.below(3) == 0;
                loss = if seeded.below(3) == 0 { 90 } else { seeded.below(3) };
                knows_it = false;
                well_since = now;
            }
            if seeded.below(1000) == 0 {
                connection.on_network_change(now);
            }
            while let Some(step) = connection.poll(now, seeded.next_u64()) {
                match step {
                    Step::Resolve if seeded.below(2) == 0 => {
                        connection.resolved(now, vec![server(1)]);
                    }
                    Step::Resolve => connection.unresolved(now, MIDDLE),
                    Step::Lost => {}
                    step => {
                        sent_in_second += 1;
                        if seeded.below(100) >= loss {
                            on_the_way.push_back((now + ms(40), step));
                        }
                    }
                }
            }
            while on_the_way.front().is_some_and(|(at, _)| *at <= now) {
                let (_, step) = on_the_way.pop_front().unwrap();
                if is_away {
                    continue;
                }
                match step {
                    Step::Hello { tx, cookie: NONE, .. } => {
                        connection.on_cookie(now, tx, COOKIE);
                    }
                    Step::Hello { tx, .. } => knows_it |= connection.on_welcome(now, tx, KEEPALIVE),
                    Step::Keepalive { tx, .. } if knows_it => {
                        connection.on_alive(now, tx);
                    }
                    _ => {
                        connection.on_who_are_you(now);
                    }
                }
            }
            let is_well = !is_away && loss < 50;
            if is_well && now > well_since + seconds(40) {
                assert!(connection.is_up() || loss > 0, "seed {seed}, after {:?}", now - begin);
            }
        }
    }
}

#[test]
fn who_was_turned_away_does_not_come_back_sooner_for_a_change_of_routes() {
    let start = start();
    let mut connection = up(start);
    let mut now = start + seconds(100);
    let mut pauses = Vec::new();
    for _ in 0..5 {
        connection.on_unusable(now, 1 << 15);
        connection.on_network_change(now + ms(10));
        let until = connection.next_deadline().unwrap();
        pauses.push((until - now).as_millis());
        now = until;
        while connection.poll(now, 7).is_some() {}
        connection.on_cookie(now, 7, COOKIE);
        while connection.poll(now, 8).is_some() {}
        assert!(connection.on_welcome(now, 8, KEEPALIVE));
    }
    assert!(pauses.windows(2).all(|pair| pair[0] < pair[1]), "{pauses:?}");
    // A welcome that was of use.
    connection.on_settled();
    connection.on_unusable(now, 1 << 15);
    assert_eq!((connection.next_deadline().unwrap() - now).as_millis(), pauses[0]);
}
