use crate::blocks::Blocks;
use crate::error::{Error, Result};
use crate::gateway;
use axum::serve::ListenerExt;
use std::future::{Future, IntoFuture};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;

/// Open answers get this long to end after the stop; a CAR of a whole graph may take hours.
const DRAIN: Duration = Duration::from_secs(3);

/// Serves `blocks` until `stop` completes, then finishes open answers for at most three seconds.
pub async fn serve(
    listener: TcpListener,
    blocks: Blocks,
    stop: impl Future<Output = ()> + Send + 'static,
) -> Result<()> {
    let (stopping, mut stopped) = watch::channel(());
    let graceful = async move {
        stop.await;
        // Dropping the sender is the signal; nobody needs to be listening.
        drop(stopping);
    };
    let serving = axum::serve(listener.tap_io(net::send_at_once), gateway::router(blocks))
        .with_graceful_shutdown(graceful)
        .into_future();
    let overdue = async move {
        // Ends with an error when the sender is dropped, which is what is waited for.
        let _ = stopped.changed().await;
        tokio::time::sleep(DRAIN).await;
    };
    tokio::select! {
        served = serving => served.map_err(|e| Error::disk("the store's listener failed", e)),
        () = overdue => Ok(()),
    }
}
