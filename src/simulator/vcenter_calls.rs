//! What the simulated vCenter answers to each method.

use super::vcenter_request::{Call, MoRef, PropertySet};
use super::vcenter_state::{ROOT, State};
use super::vcenter_tree::Refused;
use super::vcenter_updates::WATCHING;
use std::collections::VecDeque;
use std::fmt::Write;

/// What is left of an answer after a page.
#[derive(Debug)]
pub(super) struct Rest {
    session: String,
    sets: Vec<PropertySet>,
    objects: VecDeque<String>,
    page_size: usize,
}

/// An answer: status 200, or 500 with a fault.
#[derive(Debug)]
pub(super) struct Reply {
    pub ok: bool,
    pub body: String,
    /// Session that begins with this answer.
    pub cookie: Option<String>,
}

impl State {
    /// Answers a call that came with the cookie `session`.
    pub fn answer(&mut self, call: &Call, session: Option<&str>) -> Reply {
        let expired = self.spec.session_idle;
        self.sessions.retain(|_, used| used.elapsed() <= expired);
        self.end_what_sessions_had();
        let live = session.filter(|session| self.sessions.contains_key(*session));
        if let Some(used) = live.and_then(|live| self.sessions.get_mut(live)) {
            *used = tokio::time::Instant::now();
        }
        match call.method.as_str() {
            "RetrieveServiceContent" => self.service_content(),
            "Login" => self.login(call, live.is_some()),
            watching if WATCHING.contains(&watching) => {
                let Some(live) = live else { return self.no_session(call, session) };
                self.watching(call, live)
            }
            "Logout" | "RetrievePropertiesEx" | "RetrieveProperties" | "ContinueRetrievePropertiesEx" => {
                let Some(live) = live else { return self.no_session(call, session) };
                match call.method.as_str() {
                    "Logout" => {
                        self.sessions.remove(live);
                        self.tokens.retain(|_, rest| rest.session != live);
                        self.ok("Logout", None)
                    }
                    "RetrievePropertiesEx" | "RetrieveProperties" => self.retrieve(call, live),
                    _ => self.next_page(call, live),
                }
            }
            other => {
                let inner =
                    self.dialect.reference("receiver", &call.this) + &self.dialect.element("method", other);
                self.fault("MethodNotFound", "no such method", &inner)
            }
        }
    }

    /// A fault as a reply.
    pub fn fault(&self, kind: &str, message: &str, inner: &str) -> Reply {
        Reply { ok: false, body: self.dialect.fault(kind, message, inner), cookie: None }
    }

    pub fn ok(&self, method: &str, returnval: Option<&str>) -> Reply {
        Reply { ok: true, body: self.dialect.response(method, returnval), cookie: None }
    }

    /// After a restart the objects of the old session are missed before the session itself is.
    fn no_session(&self, call: &Call, session: Option<&str>) -> Reply {
        if session.is_some_and(|session| self.before_restart.contains(session)) {
            return self.not_found(&call.this);
        }
        self.not_authenticated(&call.this)
    }

    /// The fault of a call without a session.
    pub fn not_authenticated(&self, this: &MoRef) -> Reply {
        let inner =
            self.dialect.reference("object", this) + &self.dialect.element("privilegeId", "System.View");
        self.fault("NotAuthenticated", "The session is not authenticated.", &inner)
    }

    pub fn not_found(&self, object: &MoRef) -> Reply {
        let inner = self.dialect.reference("obj", object);
        self.fault(
            "ManagedObjectNotFound",
            "The object has already been deleted or has not been completely created",
            &inner,
        )
    }

    fn service_content(&self) -> Reply {
        let dialect = &self.dialect;
        let mut inner = String::new();
        for (name, kind, id) in [
            ("rootFolder", "Folder", ROOT),
            ("propertyCollector", "PropertyCollector", "propertyCollector"),
            ("viewManager", "ViewManager", "ViewManager"),
            ("eventManager", "EventManager", "EventManager"),
            ("authorizationManager", "AuthorizationManager", "AuthorizationManager"),
        ] {
            inner.push_str(&dialect.reference(name, &MoRef { kind: kind.to_owned(), id: id.to_owned() }));
        }
        let mut about = String::new();
        for (name, value) in [
            ("name", "VMware vCenter Server"),
            ("fullName", self.spec.name.as_str()),
            ("vendor", "VMware, Inc."),
            ("apiType", "VirtualCenter"),
            ("apiVersion", self.spec.api_version.as_str()),
        ] {
            about.push_str(&dialect.element(name, value));
        }
        inner.push_str(&dialect.around("about", &about));
        let sessions = MoRef { kind: "SessionManager".to_owned(), id: "SessionManager".to_owned() };
        inner.push_str(&dialect.reference("sessionManager", &sessions));
        self.ok("RetrieveServiceContent", Some(&inner))
    }

    fn login(&mut self, call: &Call, live: bool) -> Reply {
        let parameters = &call.parameters;
        let known = parameters.text("userName") == self.spec.user;
        let right = known && parameters.text("password") == self.spec.password;
        if !right || live || self.is_locked() {
            self.failed_logins += 1;
            if known && !live {
                self.rejected_in_a_row += 1;
            }
            let line = "Cannot complete login due to an incorrect user name or password.";
            return self.fault("InvalidLogin", line, "");
        }
        self.logins += 1;
        self.rejected_in_a_row = 0;
        let key = format!("{:032x}", rand::random::<u128>());
        self.sessions.insert(key.clone(), tokio::time::Instant::now());
        self.watchers.session_began(&key, self.sessions.len());
        let inner = self.dialect.element("key", &key) + &self.dialect.element("userName", &self.spec.user);
        Reply { cookie: Some(key), ..self.ok("Login", Some(&inner)) }
    }

    fn retrieve(&mut self, call: &Call, session: &str) -> Reply {
        let Some(retrieve) = call.parameters.retrieve() else {
            return self.fault("InvalidRequest", "no specSet", "");
        };
        let objects = match self.tree.select(&retrieve) {
            Ok(objects) => objects,
            Err(Refused::NotFound(object)) => return self.not_found(&object),
            Err(Refused::InvalidProperty(path)) => {
                return self.fault("InvalidProperty", "", &self.dialect.element("name", &path));
            }
        };
        if objects.is_empty() {
            return self.ok(&call.method, None);
        }
        if call.method == "RetrieveProperties" {
            let (tree, dialect) = (&mut self.tree, &self.dialect);
            let render = |id: &String| tree.render(id, &retrieve.property_sets, dialect);
            let objects: Vec<_> = objects.iter().filter_map(render).collect();
            let body = self.dialect.response(&call.method, objects.iter().map(|object| &**object));
            return Reply { ok: true, body, cookie: None };
        }
        let wanted = retrieve.max_objects.filter(|max| *max > 0).unwrap_or(usize::MAX);
        let page_size = wanted.min(self.spec.page_size).max(1);
        let rest = Rest {
            session: session.to_owned(),
            sets: retrieve.property_sets,
            objects: objects.into(),
            page_size,
        };
        self.page(&call.method, rest)
    }

    /// Tokens can be spent once, and in their session only.
    fn next_page(&mut self, call: &Call, session: &str) -> Reply {
        let token = call.parameters.text("token");
        match self.tokens.remove(token) {
            Some(rest) if rest.session == session => self.page(&call.method, rest),
            _ => self.fault("InvalidArgument", "", &self.dialect.element("invalidProperty", "token")),
        }
    }

    fn page(&mut self, method: &str, mut rest: Rest) -> Reply {
        let count = rest.page_size.min(rest.objects.len());
        let now: Vec<String> = rest.objects.drain(..count).collect();
        let mut inner = String::new();
        if !rest.objects.is_empty() {
            let mut token = String::new();
            let _ = write!(token, "{}", self.next_token);
            self.next_token += 1;
            inner.push_str(&self.dialect.element("token", &token));
            self.tokens.insert(token, Rest { sets: rest.sets.clone(), ..rest });
        }
        for id in now {
            // An object that went away between two pages is not there any more.
            if let Some(object) = self.tree.render(&id, &rest.sets, &self.dialect) {
                inner.push_str(&self.dialect.around("objects", &object));
            }
        }
        self.ok(method, Some(&inner))
    }
}
