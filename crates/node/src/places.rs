//! Places of an engine: as many requests as it takes at a time, counted here, so that nobody pays for one that it would
//! refuse.

use infer::api::ApiError;
use infer::{EngineClient, EngineEvent, FailureKind, Generate, Generation};
use std::sync::Arc;
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Requests that wait in an engine beside those that run; one that makes vectors counts what it computes, too. The engine
/// refuses more by itself: `QUEUE_MAX` in its `schedule.rs` and `embed.rs` is the same number.
const QUEUE_MAX: u32 = 32;

/// The places of one engine; clones count together.
#[derive(Clone, Debug)]
pub struct Places(Arc<Semaphore>);

impl Places {
    /// Of an engine that answers so many requests side by side.
    pub fn beside(slots: u32) -> Places {
        Places(Arc::new(Semaphore::new(usize::try_from(slots + QUEUE_MAX).unwrap_or(Semaphore::MAX_PERMITS))))
    }

    /// Of an engine that makes vectors.
    pub fn of_vectors() -> Places {
        Places::beside(0)
    }

    /// A place for one request more to `client`. Fails as the engine would: it is full, or is being started again.
    pub fn take(&self, client: &EngineClient) -> Result<Place, ApiError> {
        if client.pid().is_none() {
            return Err(refused(FailureKind::EngineDied));
        }
        let permit = self.0.clone().try_acquire_owned().map_err(|_| refused(FailureKind::Busy))?;
        Ok(Place { client: client.clone(), _permit: permit })
    }
}

fn refused(kind: FailureKind) -> ApiError {
    ApiError::for_engine(kind, kind.as_str())
}

/// The right to one request. It is free again when this is dropped, or when the engine is done with what was begun.
#[derive(Debug)]
pub struct Place {
    client: EngineClient,
    _permit: OwnedSemaphorePermit,
}

impl Place {
    /// Begins an answer. Fails when the engine has died since.
    pub fn generate(self, request: Generate) -> Result<Running, ApiError> {
        let begun = self.client.generate(request);
        begun.map(|generation| Running::of(generation, self)).map_err(|_| refused(FailureKind::EngineDied))
    }

    /// The same with vectors of texts.
    pub fn embed(self, texts: Vec<String>) -> Result<Running, ApiError> {
        let begun = self.client.embed(texts);
        begun.map(|generation| Running::of(generation, self)).map_err(|_| refused(FailureKind::EngineDied))
    }
}

/// Work of an engine. Dropping it cancels it within one step.
///
/// Its events are taken as they come, however slowly they are read here: a customer who stops reading keeps no place that
/// the engine has free. They are as many as an answer has tokens.
#[derive(Debug)]
pub struct Running(UnboundedReceiver<EngineEvent>);

impl Running {
    fn of(generation: Generation, place: Place) -> Running {
        let (pass_on, events) = mpsc::unbounded_channel();
        tokio::spawn(taken(generation, place, pass_on));
        Running(events)
    }

    /// The next event; `None` after the last one.
    pub async fn recv(&mut self) -> Option<EngineEvent> {
        self.0.recv().await
    }

    /// Ends it early; no more events come.
    pub fn cancel(&mut self) {
        self.0.close();
    }
}

/// Passes events on until the last one, before which the place is free, or until nobody is left who reads them.
async fn taken(mut generation: Generation, place: Place, pass_on: UnboundedSender<EngineEvent>) {
    let mut place = Some(place);
    loop {
        let event = tokio::select! {
            biased;
            () = pass_on.closed() => break,
            event = generation.recv() => event,
        };
        let Some(event) = event else { return };
        if !matches!(event, EngineEvent::Accepted { .. } | EngineEvent::Tokens { .. }) {
            place = None;
        }
        // An error means that the reader has gone: the next turn sees it.
        let _ = pass_on.send(event);
    }
    // The engine hears of it before whoever gets the place.
    drop(generation);
    drop(place);
}
