//! What the simulated vCenter tells of its own accord: property collectors with their filters and versions,
//! collectors of events, and what else belongs to a session.

use super::vcenter_calls::Reply;
use super::vcenter_request::{Call, MoRef, PropertySet};
use super::vcenter_spec::Pushes;
use super::vcenter_state::State;
use super::vcenter_tree::{Dialect, Refused};
use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;
use tokio::time::Instant;

/// The methods that are answered here. All of them need a session.
pub(super) const WATCHING: [&str; 10] = [
    "CurrentTime",
    "HasPrivilegeOnEntities",
    "CreatePropertyCollector",
    "CreateFilter",
    "WaitForUpdatesEx",
    "CancelWaitForUpdates",
    "DestroyPropertyCollector",
    "CreateCollectorForEvents",
    "SetCollectorPageSize",
    "DestroyCollector",
];

/// How many of the latest events are shown, unless the client wants fewer.
const EVENTS_SHOWN: usize = 1000;

/// What sessions have at the server.
#[derive(Debug, Default)]
pub(super) struct Watchers {
    began: HashMap<String, Instant>,
    collectors: HashMap<String, Collector>,
    events: HashMap<String, Events>,
    next: u64,
    next_event: u64,
    /// Most sessions that there were at a time.
    pub most_sessions: usize,
}

#[derive(Debug)]
struct Collector {
    session: String,
    filters: Vec<Filter>,
    /// Number of the last answer.
    version: u64,
    /// What that answer held, to be sent again when it was lost on its way; a cut one can't be.
    sent: Vec<Update>,
    truncated: bool,
    pending: VecDeque<Update>,
}

#[derive(Debug)]
struct Filter {
    id: String,
    watched: Watched,
}

#[derive(Debug)]
enum Watched {
    /// These properties of all hosts.
    Hosts(Vec<PropertySet>),
    /// The latest page of a collector of events.
    Events(String),
}

/// A collector of events.
#[derive(Debug)]
struct Events {
    session: String,
    types: Vec<String>,
    shown: usize,
    /// As XML, the latest first.
    page: VecDeque<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Update {
    filter: String,
    kind: &'static str,
    object: MoRef,
    paths: Vec<String>,
}

impl Watchers {
    pub fn session_began(&mut self, session: &str, open: usize) {
        self.began.insert(session.to_owned(), Instant::now());
        self.most_sessions = self.most_sessions.max(open);
    }

    /// How many collectors of either kind there are.
    pub fn count(&self) -> usize {
        self.collectors.len() + self.events.len()
    }

    /// Makes every version that a client may hold invalid.
    pub fn forget_versions(&mut self) {
        for collector in self.collectors.values_mut() {
            collector.version += 1000;
            collector.sent.clear();
            collector.truncated = true;
        }
    }

    fn new_id(&mut self, session: &str) -> String {
        self.next += 1;
        format!("session[{session}]{}", self.next)
    }
}

impl Collector {
    fn push(&mut self, update: Update) {
        let same = |old: &&mut Update| old.object == update.object && old.filter == update.filter;
        match self.pending.iter_mut().find(same) {
            Some(old) if old.kind != "leave" && update.kind == "modify" => {
                let new = update.paths.into_iter().filter(|path| !old.paths.contains(path));
                let new: Vec<_> = new.collect();
                old.paths.extend(new);
            }
            _ => self.pending.push_back(update),
        }
    }
}

impl State {
    /// Sessions that are too old end; and with them, and with those that have ended, what they had.
    pub fn end_what_sessions_had(&mut self) {
        let life = self.spec.session_life;
        let began = &self.watchers.began;
        self.sessions.retain(|session, _| began.get(session).is_none_or(|began| began.elapsed() < life));
        let live: HashSet<&String> = self.sessions.keys().collect();
        self.watchers.began.retain(|session, _| live.contains(session));
        self.watchers.collectors.retain(|_, collector| live.contains(&collector.session));
        self.watchers.events.retain(|_, events| live.contains(&events.session));
    }

    /// Answers a call of [`WATCHING`] in a live session. A wait without news is answered as idle: whoever
    /// serves it knows how long to wait before.
    pub fn watching(&mut self, call: &Call, session: &str) -> Reply {
        let parameters = &call.parameters;
        match call.method.as_str() {
            "CurrentTime" => {
                let now = jiff::Timestamp::now() + self.spec.clock_ahead;
                self.ok("CurrentTime", Some(&now.to_string()))
            }
            "HasPrivilegeOnEntities" => self.privileges(call),
            "CreatePropertyCollector" => {
                let id = self.watchers.new_id(session);
                let collector = Collector {
                    session: session.to_owned(),
                    filters: Vec::new(),
                    version: 0,
                    sent: Vec::new(),
                    truncated: false,
                    pending: VecDeque::new(),
                };
                self.watchers.collectors.insert(id.clone(), collector);
                self.made(&call.method, "PropertyCollector", &id)
            }
            "CreateFilter" => self.create_filter(call, session),
            "WaitForUpdatesEx" => self.updates(call),
            "CancelWaitForUpdates" => self.ok(&call.method, None),
            "DestroyPropertyCollector" => match self.watchers.collectors.remove(&call.this.id) {
                Some(_) => self.ok(&call.method, None),
                None => self.not_found(&call.this),
            },
            "CreateCollectorForEvents" => {
                let types = parameters.child("filter").map(|filter| filter.texts("eventTypeId"));
                let types = types.map(|types| types.map(str::to_owned).collect()).unwrap_or_default();
                let events =
                    Events { session: session.to_owned(), types, shown: EVENTS_SHOWN, page: VecDeque::new() };
                let id = self.watchers.new_id(session);
                self.watchers.events.insert(id.clone(), events);
                self.made(&call.method, "EventHistoryCollector", &id)
            }
            "SetCollectorPageSize" => match self.watchers.events.get_mut(&call.this.id) {
                Some(events) => {
                    events.shown = parameters.text("maxCount").parse().unwrap_or(EVENTS_SHOWN);
                    self.ok(&call.method, None)
                }
                None => self.not_found(&call.this),
            },
            _ => match self.watchers.events.remove(&call.this.id) {
                Some(_) => self.ok(&call.method, None),
                None => self.not_found(&call.this),
            },
        }
    }

    fn made(&self, method: &str, kind: &str, id: &str) -> Reply {
        let mut reply = self.ok(method, Some("|"));
        let made = self.dialect.reference("returnval", &MoRef { kind: kind.to_owned(), id: id.to_owned() });
        reply.body = reply.body.replace(&self.dialect.around("returnval", "|"), &made);
        reply
    }

    fn privileges(&self, call: &Call) -> Reply {
        let dialect = &self.dialect;
        let Some(entity) = call.parameters.child("entity").map(|entity| entity.reference()) else {
            return self.fault("InvalidRequest", "no entity", "");
        };
        let mut inner = dialect.reference("entity", &entity);
        for privilege in call.parameters.texts("privId") {
            let granted = self.spec.privileges.iter().any(|granted| granted == privilege);
            let one =
                dialect.element("privId", privilege) + &dialect.element("isGranted", &granted.to_string());
            inner.push_str(&dialect.around("privAvailability", &one));
        }
        self.ok(&call.method, Some(&inner))
    }

    fn create_filter(&mut self, call: &Call, session: &str) -> Reply {
        let Some(retrieve) = call.parameters.retrieve() else {
            return self.fault("InvalidRequest", "no spec", "");
        };
        let events = retrieve.objects.iter().find(|object| object.object.kind == "EventHistoryCollector");
        let watched = match events {
            Some(object) if self.watchers.events.contains_key(&object.object.id) => {
                Watched::Events(object.object.id.clone())
            }
            Some(object) => return self.not_found(&object.object),
            None => match self.tree.select(&retrieve) {
                Ok(_) => Watched::Hosts(retrieve.property_sets),
                Err(Refused::NotFound(object)) => return self.not_found(&object),
                Err(Refused::InvalidProperty(path)) => {
                    return self.fault("InvalidProperty", "", &self.dialect.element("name", &path));
                }
            },
        };
        let id = self.watchers.new_id(session);
        let all = self.all_of(&id, &watched);
        let Some(collector) = self.watchers.collectors.get_mut(&call.this.id) else {
            return self.not_found(&call.this);
        };
        collector.filters.push(Filter { id: id.clone(), watched });
        collector.pending.extend(all);
        self.made(&call.method, "PropertyFilter", &id)
    }

    /// How everything is that a filter watches.
    fn all_of(&self, filter: &str, watched: &Watched) -> Vec<Update> {
        let enter = |object, paths: &[String]| Update {
            filter: filter.to_owned(),
            kind: "enter",
            object,
            paths: paths.to_vec(),
        };
        match watched {
            Watched::Events(id) => {
                let object = MoRef { kind: "EventHistoryCollector".to_owned(), id: id.clone() };
                vec![enter(object, &["latestPage".to_owned()])]
            }
            Watched::Hosts(sets) => {
                let paths: Vec<String> = sets.iter().flat_map(|set| set.paths.clone()).collect();
                let host = |id: &String| MoRef { kind: "HostSystem".to_owned(), id: id.clone() };
                let mut ids: Vec<&String> = self.hosts.values().collect();
                ids.sort();
                ids.into_iter().map(|id| enter(host(id), &paths)).collect()
            }
        }
    }

    /// How long a wait has to wait, since nothing has changed; `None`: there is something to say.
    pub fn nothing_new(&self, call: &Call, session: Option<&str>) -> Option<Duration> {
        let is_live = session.is_some_and(|session| self.sessions.contains_key(session));
        let collector = self.watchers.collectors.get(&call.this.id).filter(|_| is_live)?;
        let version = call.parameters.text("version");
        if self.spec.impatient
            || call.method != "WaitForUpdatesEx"
            || version != collector.version.to_string()
            || !collector.pending.is_empty()
        {
            return None;
        }
        let seconds = call.parameters.child("options").and_then(|o| o.text("maxWaitSeconds").parse().ok());
        Some(seconds.map_or(Duration::MAX, Duration::from_secs))
    }

    fn updates(&mut self, call: &Call) -> Reply {
        let version = call.parameters.text("version");
        let most = self.spec.updates_at_a_time.max(1);
        let Some(collector) = self.watchers.collectors.get(&call.this.id) else {
            return self.not_found(&call.this);
        };
        let all: Option<Vec<Update>> = version.is_empty().then(|| {
            collector.filters.iter().flat_map(|filter| self.all_of(&filter.id, &filter.watched)).collect()
        });
        let Some(collector) = self.watchers.collectors.get_mut(&call.this.id) else {
            return self.not_found(&call.this);
        };
        let before = collector.version.checked_sub(1).map(|before| before.to_string());
        if let Some(all) = all {
            collector.pending = all.into();
        } else if before.as_deref() == Some(version) && !collector.truncated {
            // The last answer was lost on its way.
            for update in std::mem::take(&mut collector.sent).into_iter().rev() {
                collector.pending.push_front(update);
            }
        } else if version != collector.version.to_string() {
            let inner = self.dialect.element("version", version);
            return self.fault("InvalidCollectorVersion", "", &inner);
        }
        if collector.pending.is_empty() {
            return self.ok(&call.method, None);
        }
        let count = most.min(collector.pending.len());
        let now: Vec<Update> = collector.pending.drain(..count).collect();
        collector.version += 1;
        collector.truncated = !collector.pending.is_empty();
        collector.sent.clone_from(&now);
        let (version, truncated) = (collector.version.to_string(), collector.truncated);
        let mut inner = self.dialect.element("version", &version);
        let mut filters: Vec<&str> = now.iter().map(|update| update.filter.as_str()).collect();
        filters.sort_unstable();
        filters.dedup();
        for filter in filters {
            let reference = MoRef { kind: "PropertyFilter".to_owned(), id: filter.to_owned() };
            let mut set = self.dialect.reference("filter", &reference);
            for update in now.iter().filter(|update| update.filter == filter) {
                let told = self.tell(update);
                set.push_str(&self.dialect.around("objectSet", &told));
            }
            inner.push_str(&self.dialect.around("filterSet", &set));
        }
        if truncated {
            inner.push_str(&self.dialect.element("truncated", "true"));
        }
        self.ok(&call.method, Some(&inner))
    }

    /// An ObjectUpdate, without its own element.
    fn tell(&mut self, update: &Update) -> String {
        let dialect = self.dialect.clone();
        let kind = dialect.element("kind", update.kind);
        if let Some(events) = self.watchers.events.get(&update.object.id) {
            let page: String = events.page.iter().take(events.shown).cloned().collect();
            let page = dialect.array("val", "ArrayOfEvent", &page);
            let change = dialect.element("name", "latestPage") + &dialect.element("op", "assign") + &page;
            return kind + &dialect.reference("obj", &update.object) + &dialect.around("changeSet", &change);
        }
        let sets = [PropertySet { kind: update.object.kind.clone(), paths: update.paths.clone() }];
        match self.tree.render(&update.object.id, &sets, &dialect) {
            Some(object) if update.kind != "leave" => kind + &as_update(&dialect, &object),
            _ => dialect.element("kind", "leave") + &dialect.reference("obj", &update.object),
        }
    }

    /// A property of a host has changed.
    pub fn changed(&mut self, host: &MoRef, path: &str) {
        let is_told = match self.spec.pushes {
            Pushes::Everything => true,
            Pushes::AllButStatus => path != "overallStatus",
            Pushes::Nothing => false,
        };
        if is_told {
            self.push("modify", host, Some(path));
        }
    }

    /// A host has come or gone.
    pub fn came_or_went(&mut self, kind: &'static str, host: &MoRef) {
        if self.spec.pushes != Pushes::Nothing {
            self.push(kind, host, None);
        }
    }

    fn push(&mut self, kind: &'static str, object: &MoRef, path: Option<&str>) {
        for collector in self.watchers.collectors.values_mut() {
            let mut updates = Vec::new();
            for filter in &collector.filters {
                let Watched::Hosts(sets) = &filter.watched else { continue };
                let mut paths: Vec<String> = sets.iter().flat_map(|set| set.paths.clone()).collect();
                if let Some(path) = path {
                    paths.retain(|watched| watched == path);
                }
                if !paths.is_empty() {
                    updates.push(Update { filter: filter.id.clone(), kind, object: object.clone(), paths });
                }
            }
            updates.into_iter().for_each(|update| collector.push(update));
        }
    }

    /// An alarm of an entity has changed its status.
    pub fn fire_alarm(&mut self, entity: &MoRef, to: &str) {
        if !self.spec.fires_events {
            return;
        }
        const TYPE: &str = "AlarmStatusChangedEvent";
        self.watchers.next_event += 1;
        let dialect = &self.dialect;
        let argument = |name: &str, inner: &str, object: &MoRef| {
            dialect.around(name, &(dialect.element("name", &object.id) + &dialect.reference(inner, object)))
        };
        let root = MoRef { kind: "Folder".to_owned(), id: super::vcenter_state::ROOT.to_owned() };
        let alarm = MoRef { kind: "Alarm".to_owned(), id: "alarm-1".to_owned() };
        let key = self.watchers.next_event.to_string();
        let inner = dialect.element("key", &key)
            + &dialect.element("chainId", &key)
            + &dialect.element("createdTime", &jiff::Timestamp::now().to_string())
            + &dialect.element("userName", "")
            + &argument("alarm", "alarm", &alarm)
            + &argument("source", "entity", &root)
            + &argument("entity", "entity", entity)
            + &dialect.element("from", "green")
            + &dialect.element("to", to);
        let event = dialect.array("Event", TYPE, &inner);
        let mut told = HashSet::new();
        for (id, events) in &mut self.watchers.events {
            if events.types.is_empty() || events.types.iter().any(|wanted| wanted == TYPE) {
                events.page.push_front(event.clone());
                events.page.truncate(EVENTS_SHOWN);
                told.insert(id.clone());
            }
        }
        for collector in self.watchers.collectors.values_mut() {
            let mut updates = Vec::new();
            for filter in &collector.filters {
                if let Watched::Events(id) = &filter.watched
                    && told.contains(id)
                {
                    let object = MoRef { kind: "EventHistoryCollector".to_owned(), id: id.clone() };
                    let paths = vec!["latestPage".to_owned()];
                    updates.push(Update { filter: filter.id.clone(), kind: "modify", object, paths });
                }
            }
            updates.into_iter().for_each(|update| collector.push(update));
        }
    }
}

/// An ObjectContent as an ObjectUpdate: the same properties, each as a change.
fn as_update(dialect: &Dialect, object: &str) -> String {
    let tags = |name: &str| {
        let whole = dialect.around(name, "|");
        whole.split_once('|').map(|(open, close)| (open.to_owned(), close.to_owned())).unwrap_or_default()
    };
    let (open, close) = tags("objects");
    let inner = object.strip_prefix(&open).and_then(|rest| rest.strip_suffix(&close)).unwrap_or(object);
    let ((set, set_end), (change, change_end)) = (tags("propSet"), tags("changeSet"));
    let name_end = tags("name").1;
    let op = name_end.clone() + &dialect.element("op", "assign");
    inner.replace(&set, &change).replace(&set_end, &change_end).replace(&name_end, &op)
}
