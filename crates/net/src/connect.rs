//! Where connections come from: the machine's network, or whatever a caller dials by.

use futures::future::BoxFuture;
use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use hyper_util::client::legacy::connect::{Connected, Connection as Connects, HttpConnector};
use hyper_util::rt::TokioIo;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tower::Service;

/// What bytes go through in both directions.
pub trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

/// Makes a connection to the host and port of an address.
pub type Dial = Arc<dyn Fn(Uri) -> BoxFuture<'static, io::Result<Box<dyn Wire>>> + Send + Sync>;

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type OfMachine = HttpsConnector<HttpConnector>;

/// Makes the connections of a [`crate::Pool`].
#[derive(Clone)]
pub struct Connector(By);

#[derive(Clone)]
enum By {
    Machine(OfMachine),
    Dial(Dial),
}

impl Connector {
    pub(crate) fn of_machine(connector: OfMachine) -> Self {
        Self(By::Machine(connector))
    }

    pub(crate) fn by(dial: Dial) -> Self {
        Self(By::Dial(dial))
    }
}

impl Service<Uri> for Connector {
    type Response = Connection;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Connection, BoxError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        match &mut self.0 {
            By::Machine(connector) => connector.poll_ready(cx),
            By::Dial(_) => Poll::Ready(Ok(())),
        }
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        match &mut self.0 {
            By::Machine(connector) => {
                let connecting = connector.call(to);
                Box::pin(async move { Ok(Connection(Line::Machine(Box::new(connecting.await?)))) })
            }
            By::Dial(dial) => {
                let dialling = dial(to);
                Box::pin(async move { Ok(Connection(Line::Dialled(TokioIo::new(dialling.await?)))) })
            }
        }
    }
}

/// One connection of a [`Connector`].
pub struct Connection(Line);

enum Line {
    Machine(Box<MaybeHttpsStream<TokioIo<TcpStream>>>),
    Dialled(TokioIo<Box<dyn Wire>>),
}

impl Connects for Connection {
    fn connected(&self) -> Connected {
        match &self.0 {
            Line::Machine(stream) => stream.connected(),
            Line::Dialled(_) => Connected::new(),
        }
    }
}

impl Read for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Line::Machine(stream) => Pin::new(stream).poll_read(cx, into),
            Line::Dialled(stream) => Pin::new(stream).poll_read(cx, into),
        }
    }
}

impl Write for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.0 {
            Line::Machine(stream) => Pin::new(stream).poll_write(cx, bytes),
            Line::Dialled(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Line::Machine(stream) => Pin::new(stream).poll_flush(cx),
            Line::Dialled(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Line::Machine(stream) => Pin::new(stream).poll_shutdown(cx),
            Line::Dialled(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
