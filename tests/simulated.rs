//! Hosts on a simulated network (turmoil): shared by the crates whose tests run real HTTP over one.

use axum::serve::Listener;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

/// A simulated port that axum serves.
pub struct Port(pub turmoil::net::TcpListener);

impl Listener for Port {
    type Io = turmoil::net::TcpStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            if let Ok(taken) = self.0.accept().await {
                return taken;
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

/// A client of whichever simulated host it is made on.
pub fn client() -> net::Client {
    let dial: net::Dial = Arc::new(|to| {
        Box::pin(async move {
            let host = to.host().unwrap_or_default().to_owned();
            let stream = turmoil::net::TcpStream::connect((host, to.port_u16().unwrap_or(80))).await?;
            Ok(Box::new(stream) as Box<dyn net::Wire>)
        })
    });
    net::Client::dialling(dial)
}
