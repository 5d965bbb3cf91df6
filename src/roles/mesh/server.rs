//! The main thread: opens everything, and then what is ready, what is reported and what is due.

use super::Config;
use super::control::Control;
use super::counters::Counters;
use super::mend::Watch;
use super::mesh::{Ground, Mesh};
use super::names::Names;
use super::requests::Answer;
use super::series::Series;
use super::sockets::Sockets;
use crate::error::Error;
use crate::roles::data_plane::Plane;
use crate::roles::data_plane::orders::REPORTS_PER_TURN;
use crate::roles::frame::{FIRST_OWN, Frame, Happening, WAKE};
use crate::roles::startup::{ASKED_FOR, Startup};
use crate::runtime::clock;
use crate::runtime::event_loop::Readiness;
use mio::Token;
use std::sync::Arc;
use std::time::Instant;

/// Word of what others change.
const CHANGES: Token = Token(FIRST_OWN);

/// Bytes of answers after which they are handed over.
const ANSWERS_LEN_MAX: usize = 256 * 1024;

/// Serves until it is stopped.
pub(super) fn serve(config: &Config, startup: Startup) -> Result<(), Error> {
    let mut frame = Frame::new(config.common.metrics, None)?;
    let counters = Arc::new(Counters::new(&mut frame.registry));
    let series = Series::register(&mut frame.registry);
    let wake = frame.wake()?;
    let sockets = Sockets::open(config)?;
    let (plane, reports) = Plane::start("mesh", &wake, &mut frame.registry)?;
    let (names, found) =
        Names::start(&wake).map_err(Error::while_doing(|| "cannot start a thread for names"))?;
    let ground = Ground { plane, sockets, names, series, counters: Arc::clone(&counters) };
    let mut mesh = Mesh::new(config, ground)?;
    let floor_ms = mesh.restore(clock::now(), config.restores)?;
    // After the tunnels are there: what was done before this is not told.
    let mut watch = Watch::open(&mut frame.events, CHANGES)?;
    let first_token = FIRST_OWN + 1;
    let mut control = Control::open(config, &mut frame.events, first_token, floor_ms, &counters)?;
    warn(config);
    frame.ready(startup)?;
    let mut next_round = Some(clock::now());
    loop {
        let numbers = || (counters.status_line(), counters.status_line());
        let deadlines = [next_round, control.next_deadline(), watch.deadline()];
        let deadline = deadlines.into_iter().flatten().min();
        match frame.next_happening(deadline, numbers)? {
            Happening::Stop => break,
            Happening::Reload => control.reload(config),
            Happening::Ready(WAKE, _) => {
                let now = clock::now();
                let mut heard = 0;
                for report in reports.drain().take(REPORTS_PER_TURN) {
                    heard += 1;
                    mesh.hear(now, report)?;
                }
                if heard == REPORTS_PER_TURN {
                    // The wake has been answered: nobody wakes us for what is left.
                    frame.events.again(WAKE, Readiness::READABLE);
                }
                for found in found.drain() {
                    mesh.found(now, found);
                }
            }
            Happening::Ready(CHANGES, _) => watch.hear(clock::now(), &mesh.devices),
            Happening::Ready(token, readiness) => {
                control.receive(token, readiness, clock::now(), &mut frame.events);
            }
            Happening::RoundOver(now) => {
                if carry_out(&mut mesh, &mut control, now) || next_round.is_some_and(|at| at <= now)
                {
                    mesh.tend(now);
                    next_round = mesh.next_round(now);
                }
                if let Some(touched) = watch.due(now) {
                    mesh.mend(now, &touched);
                }
                control.flush(&mut frame.events);
            }
        }
    }
    drop(control);
    // Nobody listens to how the devices go.
    drop(watch);
    mesh.stop();
    Ok(())
}

/// Carries out what has been asked, saves, and then answers. Returns whether anything was asked.
fn carry_out(mesh: &mut Mesh, control: &mut Control, now: Instant) -> bool {
    let mut any = false;
    loop {
        // Many share one save; few enough that whoever does not read his answers is noticed.
        let mut answers = Vec::new();
        let mut len = 0;
        while let Some((asker, text)) = control.next_request() {
            any = true;
            let answer = mesh.handle(now, asker, &text);
            len += answer.as_ref().map_or(0, Answer::len);
            answers.extend(answer.map(|answer| (asker, answer)));
            if len >= ANSWERS_LEN_MAX {
                break;
            }
        }
        let saved = mesh.save(control.command_time_ms());
        for (asker, answer) in answers {
            control.answer(asker, &answer.text(&saved));
        }
        if len < ANSWERS_LEN_MAX {
            return any;
        }
    }
}

/// Lines that nobody shall miss, whatever the log's level.
fn warn(config: &Config) {
    log::warn!(
        target: ASKED_FOR,
        "packets are sent unencrypted (--plaintext): whoever is on the way reads and forges them"
    );
    if config.insecure_control {
        log::warn!(
            target: ASKED_FOR,
            "anybody who reaches --control-addr commands this daemon (--insecure-control): it is a \
             way into this host's network"
        );
    }
}
