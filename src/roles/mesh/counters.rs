//! What the daemon counts beside the data plane.

use crate::runtime::metrics::{Counter, Gauge, Registry};
use std::sync::Arc;

/// Why a command, or its answer, was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CommandDrop {
    /// More commands in a second than --control-rate.
    Rate,
    /// A proof is wanted, and there is none.
    NoProof,
    /// There is a proof, and no key to check it with.
    NoKey,
    /// The proof is not that of the key.
    WrongProof,
    /// The clocks differ too much, or it was made before the last one of another run.
    WrongTime,
    /// It has counted before.
    Replayed,
    /// Too many commands are remembered.
    TooManyRemembered,
    /// The kernel dropped it: there was no room, or it came from outside to the control port.
    Kernel,
    /// The answer would be longer than the question, and nobody has proven that he asked.
    AnswerTooLong,
    /// The kernel did not take the answer.
    AnswerNotSent,
}

impl CommandDrop {
    /// In order of declaration, with the metrics labels.
    const LABELS: [&'static str; 10] = [
        "rate",
        "no-proof",
        "no-key",
        "wrong-proof",
        "wrong-time",
        "replayed",
        "too-many-remembered",
        "kernel",
        "answer-too-long",
        "answer-not-sent",
    ];

    /// For a log line.
    pub(super) fn label(self) -> &'static str {
        Self::LABELS[self as usize]
    }
}

/// The role's counters.
pub(super) struct Counters {
    pub(super) tunnels: Arc<Gauge>,
    pub(super) tunnels_up: Arc<Gauge>,
    pub(super) tunnels_down: Arc<Gauge>,
    pub(super) tunnels_faulty: Arc<Gauge>,
    pub(super) requests: Arc<Counter>,
    pub(super) requests_refused: Arc<Counter>,
    pub(super) changes: Arc<Counter>,
    pub(super) rollbacks: Arc<Counter>,
    pub(super) state_writes: Arc<Counter>,
    pub(super) state_write_failures: Arc<Counter>,
    pub(super) devices_remade: Arc<Counter>,
    pub(super) remotes_moved: Arc<Counter>,
    pub(super) lookups: Arc<Counter>,
    pub(super) lookup_failures: Arc<Counter>,
    pub(super) pings: Arc<Counter>,
    pub(super) pongs: Arc<Counter>,
    pub(super) signs_dropped: Arc<Counter>,
    pub(super) hook_failures: Arc<Counter>,
    pub(super) connections: Arc<Gauge>,
    pub(super) connections_refused: Arc<Counter>,
    commands_dropped: [Arc<Counter>; CommandDrop::LABELS.len()],
}

impl Counters {
    /// Registers every counter, so that all of them show from the start, at zero.
    pub(super) fn new(registry: &mut Registry) -> Counters {
        let commands_dropped = CommandDrop::LABELS.map(|reason| {
            let help = "Commands over UDP, or their answers, dropped, by reason.";
            let name = "udpferry_mesh_commands_dropped_total";
            registry.labelled_counter(name, help, ("reason", reason))
        });
        let mut gauge = |name, help| registry.gauge(name, help);
        let tunnels = gauge("udpferry_mesh_tunnels", "Tunnels now.");
        let tunnels_up =
            gauge("udpferry_mesh_tunnels_up", "Tunnels whose remote was heard lately.");
        let tunnels_down =
            gauge("udpferry_mesh_tunnels_down", "Tunnels whose remote does not answer keepalives.");
        let tunnels_faulty = gauge(
            "udpferry_mesh_tunnels_faulty",
            "Tunnels that carry nothing: no device, or no address of the remote.",
        );
        let connections =
            gauge("udpferry_mesh_control_connections", "Controllers at the Unix socket now.");
        let mut counter = |name, help| registry.counter(name, help);
        Counters {
            tunnels,
            tunnels_up,
            tunnels_down,
            tunnels_faulty,
            requests: counter("udpferry_mesh_requests_total", "Requests that were read."),
            requests_refused: counter(
                "udpferry_mesh_requests_refused_total",
                "Requests that changed nothing because of an error in them or on the host.",
            ),
            changes: counter(
                "udpferry_mesh_changes_total",
                "Tunnels added, changed or removed by requests.",
            ),
            rollbacks: counter(
                "udpferry_mesh_rollbacks_total",
                "Requests that failed half-way on the host and were taken back.",
            ),
            state_writes: counter("udpferry_mesh_state_writes_total", "State files written."),
            state_write_failures: counter(
                "udpferry_mesh_state_write_failures_total",
                "State files that could not be written.",
            ),
            devices_remade: counter(
                "udpferry_mesh_devices_remade_total",
                "Devices that somebody deleted and that were made again.",
            ),
            remotes_moved: counter(
                "udpferry_mesh_remotes_moved_total",
                "Remotes that were followed to another endpoint, or whose name has another address.",
            ),
            lookups: counter("udpferry_mesh_lookups_total", "Names of remotes looked up."),
            lookup_failures: counter(
                "udpferry_mesh_lookup_failures_total",
                "Names of remotes that could not be looked up.",
            ),
            pings: counter("udpferry_mesh_pings_total", "Keepalives sent."),
            pongs: counter("udpferry_mesh_pongs_total", "Answers to keepalives received."),
            signs_dropped: counter(
                "udpferry_mesh_signs_dropped_total",
                "Keepalives and answers that nobody understands or that come from no remote.",
            ),
            hook_failures: counter(
                "udpferry_mesh_hook_failures_total",
                "Hooks that failed, took too long, or were too many.",
            ),
            connections,
            connections_refused: counter(
                "udpferry_mesh_control_connections_refused_total",
                "Controllers beyond 32 at the Unix socket, closed at once.",
            ),
            commands_dropped,
        }
    }

    pub(super) fn commands_dropped(&self, reason: CommandDrop, count: u64) {
        self.commands_dropped[reason as usize].add(count);
    }

    /// One line for whoever asks how it goes.
    pub(super) fn status_line(&self) -> String {
        format!(
            "{} tunnels: {} up, {} down, {} faulty; {} changes",
            self.tunnels.get(),
            self.tunnels_up.get(),
            self.tunnels_down.get(),
            self.tunnels_faulty.get(),
            self.changes.get(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_stand_in_the_order_of_declaration() {
        assert_eq!(CommandDrop::AnswerNotSent.label(), "answer-not-sent");
        assert_eq!(CommandDrop::Replayed.label(), "replayed");
    }
}
