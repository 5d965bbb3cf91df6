//! Datagrams in, datagrams out.

use crate::support::{Echo, Gateway};

#[test]
fn datagrams_of_every_size_come_back() {
    let gateway = Gateway::start(&[]);
    let echo = Echo::start();
    let mut client = gateway.connect();
    for len in [0, 1, 2, 500, 1400, 1472, 1473, 9000, 65_507] {
        let payload: Vec<u8> = (0..len).map(|n: usize| n.to_le_bytes()[0]).collect();
        client.echo(7, echo.address, &payload);
    }
    gateway.await_metric("udpferry_udpgw_datagrams_total{direction=\"to-client\"}", 9);
}
