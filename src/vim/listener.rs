//! Waits for what a vCenter tells of its own accord, in the session of somebody else and on a connection of
//! its own.
//!
//! What it tells is a hint and nothing more: that these hosts are worth a read. What can't be had, such as
//! events for an account that may not see them, is done without.

use super::call::{VimError, Whole};
use super::client::Live;
use super::model::Reference;
use super::soap::{self, FaultKind, Method, ServiceContent};
use super::transport::{Transport, WAIT};
use super::updates::{self, Event, Updates};
use crate::outcome::{Failure, FailureReason};
use std::collections::HashSet;
use std::sync::Arc;

/// Most answers in a row that are cut: a server that never comes to an end does not keep us for ever.
const MOST_CUT: usize = 5_000;

/// What an answer says of the hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hint {
    /// Nothing has changed.
    Nothing,
    /// These have changed, by their ids (`host-15`).
    Hosts(HashSet<Arc<str>>),
    /// Some may have changed, and nobody knows which.
    Anything,
}

/// A property collector and a collector of events at the server. Both end with the session at the latest.
#[derive(Debug)]
pub struct Listener {
    transport: Transport,
    service: ServiceContent,
    collector: Reference,
    events: Option<Reference>,
    /// Why there are no events, if there are none.
    without_events: Option<VimError>,
    version: String,
    /// The last answer was cut: its version can't be asked for a second time.
    truncated: bool,
    /// What comes is not news, but how things are.
    catching_up: bool,
    /// Key of the latest event that is known.
    latest: Option<i64>,
}

impl Listener {
    /// Makes what is needed at the server.
    ///
    /// # Errors
    /// When the session is gone, or the server makes no property collector or filter.
    pub async fn open(live: &Live) -> Result<Self, VimError> {
        let transport = live.transport.beside(live.cookies.clone())?;
        let (method, request) =
            (Method::CreatePropertyCollector, updates::create_property_collector(&live.service));
        let collector = transport
            .ask(method, request, None, None, Whole::by(|body: &[u8]| updates::read_made(method, body)))
            .await?;
        let mut listener = Self {
            transport,
            service: live.service.clone(),
            collector,
            events: None,
            without_events: None,
            version: String::new(),
            truncated: false,
            catching_up: true,
            latest: None,
        };
        if let Err(error) = listener.watch().await {
            listener.close().await;
            return Err(error);
        }
        Ok(listener)
    }

    async fn watch(&mut self) -> Result<(), VimError> {
        self.filter(updates::watch_hosts(&self.service, &self.collector)).await?;
        match self.watch_events().await {
            Err(error) if error.fault.is_none() || error.session_is_gone() => Err(error),
            Err(error) => {
                self.without_events = Some(error);
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    async fn watch_events(&mut self) -> Result<(), VimError> {
        let Some(event_manager) = self.service.event_manager.clone() else { return Ok(()) };
        let request = soap::current_time();
        let now =
            self.transport.ask(Method::CurrentTime, request, None, None, Whole::by(soap::read_current_time));
        let (since, _) = now.await?;
        let (method, request) =
            (Method::CreateCollectorForEvents, updates::collect_alarms(&event_manager, &since));
        let made = self.transport.ask(
            method,
            request,
            None,
            None,
            Whole::by(|body: &[u8]| updates::read_made(method, body)),
        );
        let events = &*self.events.insert(made.await?);
        let (limit, watch) = (updates::limit_events(events), updates::watch_events(&self.collector, events));
        let method = Method::SetCollectorPageSize;
        self.transport
            .ask(method, limit, None, None, Whole::by(|body: &[u8]| soap::read_success(method, body)))
            .await?;
        self.filter(watch).await
    }

    async fn filter(&self, request: zeroize::Zeroizing<String>) -> Result<(), VimError> {
        let method = Method::CreateFilter;
        self.transport
            .ask(method, request, None, None, Whole::by(|body: &[u8]| updates::read_made(method, body)))
            .await
            .map(drop)
    }

    /// Why no events are told; `None`: they are, or the server knows none.
    pub fn without_events(&self) -> Option<&VimError> {
        self.without_events.as_ref()
    }

    /// Whether changes of alarms are told.
    pub fn hears_events(&self) -> bool {
        self.events.is_some() && self.without_events.is_none()
    }

    /// Waits for the next hint, a good minute at most. First comes how things are, and then
    /// [`Hint::Anything`]: nobody knows what has changed between the last read and that.
    ///
    /// # Errors
    /// When the wait broke off. It may be tried again, unless the session is gone: what was missed
    /// meanwhile is told then, or comes as [`Hint::Anything`].
    pub async fn next(&mut self) -> Result<Hint, VimError> {
        for _ in 0..MOST_CUT {
            let seconds = if self.catching_up || self.truncated { 0 } else { WAIT.as_secs() };
            let request = updates::wait(&self.collector, &self.version, seconds);
            let method = Method::WaitForUpdatesEx;
            let hint =
                match self.transport.ask(method, request, None, None, Whole::by(updates::read_updates)).await
                {
                    Ok(answer) => self.take(answer),
                    Err(error) => {
                        let fault = error.fault.as_ref().map(|fault| &fault.kind);
                        if fault == Some(&FaultKind::InvalidCollectorVersion) || self.truncated {
                            self.begin_again();
                        }
                        return Err(error);
                    }
                };
            if !self.catching_up {
                return Ok(hint);
            }
            if !self.truncated {
                self.catching_up = false;
                return Ok(Hint::Anything);
            }
        }
        let line = format!("vCenter {} never comes to the end of how things are", self.transport.vcenter());
        Err(Failure::new(FailureReason::AnswerTooLarge, line).into())
    }

    /// What an answer says that is no part of how things are at first.
    fn take(&mut self, answer: Option<Updates>) -> Hint {
        let updates =
            answer.unwrap_or_else(|| Updates { version: self.version.clone(), ..Updates::default() });
        self.version = updates.version;
        self.truncated = updates.truncated;
        let Some(told) = updates.events.map_or(Some(HashSet::new()), |events| self.news_of(&events)) else {
            return Hint::Anything;
        };
        let hosts: HashSet<_> = told.into_iter().chain(updates.hosts).collect();
        if hosts.is_empty() { Hint::Nothing } else { Hint::Hosts(hosts) }
    }

    /// The hosts of the events that are new; `None`: there were more than are shown.
    fn news_of(&mut self, events: &[Event]) -> Option<HashSet<Arc<str>>> {
        let known = self.latest;
        let is_new = |event: &&Event| known.is_none_or(|known| event.key > known);
        let new: Vec<&Event> = events.iter().filter(is_new).collect();
        self.latest = new.iter().map(|event| event.key).max().max(known);
        let all = new.len() < updates::EVENTS_SHOWN;
        all.then(|| new.into_iter().filter_map(|event| event.host.clone()).collect())
    }

    /// From the start: what comes first will be how things are.
    fn begin_again(&mut self) {
        self.version.clear();
        self.truncated = false;
        self.catching_up = true;
    }

    /// Ends what was made at the server, within a second.
    pub async fn close(self) {
        if let Err(error) = self.end().await {
            tracing::debug!("left to the end of the session: {error}");
        }
    }

    async fn end(&self) -> Result<(), VimError> {
        let end = |method, request| {
            self.transport.ask(
                method,
                request,
                None,
                None,
                Whole::by(move |body: &[u8]| soap::read_success(method, body)),
            )
        };
        let properties = updates::destroy_property_collector(&self.collector);
        end(Method::DestroyPropertyCollector, properties).await?;
        if let Some(events) = &self.events {
            end(Method::DestroyCollector, updates::destroy_event_collector(events)).await?;
        }
        Ok(())
    }
}
