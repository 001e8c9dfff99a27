//! SOAP messages of the vSphere API: requests as text, and faults. No I/O.

use super::model::Reference;
use super::xml::{Cursor, Element, SOAP, Unreadable, VIM, XSD, XSI};
use quick_xml::escape::escape;
use std::fmt;
use zeroize::Zeroizing;

/// The header `SOAPAction` of every request. 6.5 is the first version with every property that the
/// collectors read, and every later server still speaks it.
pub const SOAP_ACTION: &str = "\"urn:vim25/6.5\"";

/// Longest name of a fault that is kept.
const MAX_NAME: usize = 64;

/// The calls that the agent makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// What the server is, and the references of its managers. Needs no session.
    RetrieveServiceContent,
    /// Starts a session.
    Login,
    /// Ends the session.
    Logout,
    /// Reads properties: the first page.
    RetrievePropertiesEx,
    /// Reads properties: the next page.
    ContinueRetrievePropertiesEx,
    /// Reads properties, all in one answer. Deprecated since API 4.1, and still there.
    RetrieveProperties,
    /// The server's time.
    CurrentTime,
    /// Which privileges the session has on some objects.
    HasPrivilegeOnEntities,
    /// Makes a property collector, which lives as long as the session.
    CreatePropertyCollector,
    /// Tells a property collector what to watch.
    CreateFilter,
    /// Waits for news of what a property collector watches.
    WaitForUpdatesEx,
    /// Ends a property collector and its filters.
    DestroyPropertyCollector,
    /// Makes a collector of events, which lives as long as the session.
    CreateCollectorForEvents,
    /// How many events a collector keeps at hand.
    SetCollectorPageSize,
    /// Ends a collector of events.
    DestroyCollector,
}

impl Method {
    /// Its name on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::RetrieveServiceContent => "RetrieveServiceContent",
            Self::Login => "Login",
            Self::Logout => "Logout",
            Self::RetrievePropertiesEx => "RetrievePropertiesEx",
            Self::ContinueRetrievePropertiesEx => "ContinueRetrievePropertiesEx",
            Self::RetrieveProperties => "RetrieveProperties",
            Self::CurrentTime => "CurrentTime",
            Self::HasPrivilegeOnEntities => "HasPrivilegeOnEntities",
            Self::CreatePropertyCollector => "CreatePropertyCollector",
            Self::CreateFilter => "CreateFilter",
            Self::WaitForUpdatesEx => "WaitForUpdatesEx",
            Self::DestroyPropertyCollector => "DestroyPropertyCollector",
            Self::CreateCollectorForEvents => "CreateCollectorForEvents",
            Self::SetCollectorPageSize => "SetCollectorPageSize",
            Self::DestroyCollector => "DestroyCollector",
        }
    }

    /// Whether asking a second time does no harm: neither a login, nor something that spends a token.
    pub const fn is_repeatable(self) -> bool {
        matches!(
            self,
            Self::RetrieveServiceContent
                | Self::RetrievePropertiesEx
                | Self::RetrieveProperties
                | Self::CurrentTime
        )
    }
}

/// A request: `this` is the object whose method is called, `parameters` is XML.
pub fn request(method: Method, this: &Reference, parameters: &str) -> Zeroizing<String> {
    let name = method.name();
    let (kind, id) = (escape(&*this.kind), escape(&*this.id));
    Zeroizing::new(format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <soapenv:Envelope xmlns:soapenv=\"{SOAP}\" xmlns:xsd=\"{XSD}\" xmlns:xsi=\"{XSI}\"><soapenv:Body>\
         <{name} xmlns=\"{VIM}\"><_this type=\"{kind}\">{id}</_this>{parameters}</{name}>\
         </soapenv:Body></soapenv:Envelope>"
    ))
}

/// An element with text, escaped.
pub fn element(name: &str, text: &str) -> String {
    format!("<{name}>{}</{name}>", escape(text))
}

/// The request for the service's content, on the one object whose reference is well known.
pub fn retrieve_service_content() -> Zeroizing<String> {
    request(Method::RetrieveServiceContent, &Reference::new("ServiceInstance", "ServiceInstance"), "")
}

/// The request for a session. Holds the password.
pub fn login(session_manager: &Reference, user: &str, password: &str) -> Zeroizing<String> {
    let password = Zeroizing::new(element("password", password));
    let parameters = Zeroizing::new(element("userName", user) + &password);
    request(Method::Login, session_manager, &parameters)
}

/// The request that ends the session.
pub fn logout(session_manager: &Reference) -> Zeroizing<String> {
    request(Method::Logout, session_manager, "")
}

/// What a fault is, by the name of its type. Closed, but for names that change nothing in what we do.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum FaultKind {
    /// User or password is wrong, the account is locked, or the session has a login already.
    InvalidLogin,
    /// No session, or it has expired.
    NotAuthenticated,
    /// The account lacks a privilege.
    NoPermission,
    /// The object does not exist (any more); after a restart of the server the session's objects, too.
    ManagedObjectNotFound,
    /// The server's API version has no such property.
    InvalidProperty,
    /// The server does not understand the request.
    InvalidRequest,
    /// The server has no such method.
    MethodNotFound,
    /// The call was cancelled.
    RequestCanceled,
    /// The version of what is watched is none (any more).
    InvalidCollectorVersion,
    /// Another one; `[A-Za-z0-9_.-]*`, at most 64 characters.
    Other(Box<str>),
}

impl FaultKind {
    /// By the name of the type.
    pub fn from_name(name: &str) -> Self {
        match name {
            // The second one is a kind of the first (vSphere Web Services API, `PasswordExpired`).
            "InvalidLogin" | "PasswordExpired" => Self::InvalidLogin,
            "NotAuthenticated" => Self::NotAuthenticated,
            "NoPermission" => Self::NoPermission,
            "ManagedObjectNotFound" => Self::ManagedObjectNotFound,
            "InvalidProperty" => Self::InvalidProperty,
            "InvalidRequest" => Self::InvalidRequest,
            "MethodNotFound" => Self::MethodNotFound,
            "RequestCanceled" => Self::RequestCanceled,
            "InvalidCollectorVersion" => Self::InvalidCollectorVersion,
            other => Self::Other(plain(other).into()),
        }
    }

    /// The name of the type.
    pub fn name(&self) -> &str {
        match self {
            Self::InvalidLogin => "InvalidLogin",
            Self::NotAuthenticated => "NotAuthenticated",
            Self::NoPermission => "NoPermission",
            Self::ManagedObjectNotFound => "ManagedObjectNotFound",
            Self::InvalidProperty => "InvalidProperty",
            Self::InvalidRequest => "InvalidRequest",
            Self::MethodNotFound => "MethodNotFound",
            Self::RequestCanceled => "RequestCanceled",
            Self::InvalidCollectorVersion => "InvalidCollectorVersion",
            Self::Other(name) => name,
        }
    }
}

/// What a name may hold, so that a peer can't write into our log.
fn plain(name: &str) -> String {
    let is_plain = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    name.chars().filter(is_plain).take(MAX_NAME).collect()
}

/// A SOAP fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// What it is.
    pub kind: FaultKind,
    /// The property, privilege or object that it names.
    pub subject: Option<String>,
    /// The object on which a privilege is missing.
    pub object: Option<Reference>,
}

impl From<FaultKind> for Fault {
    /// Without what it names.
    fn from(kind: FaultKind) -> Self {
        Self { kind, subject: None, object: None }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.subject, &self.object) {
            (Some(subject), Some(object)) => write!(f, "fault {} ({subject} on {object})", self.kind.name()),
            (Some(subject), None) => write!(f, "fault {} ({subject})", self.kind.name()),
            (None, _) => write!(f, "fault {}", self.kind.name()),
        }
    }
}

/// Why there is no result in an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoResult {
    /// The server said why.
    Fault(Fault),
    /// The answer is not what it should be.
    Unreadable(Unreadable),
}

impl From<Unreadable> for NoResult {
    fn from(unreadable: Unreadable) -> Self {
        Self::Unreadable(unreadable)
    }
}

/// Reads the answer to `method`: calls `returnval` at each element of that name, which it has to read up
/// to its end. The document is read to its end, so what comes out of a cut answer is an error, always.
pub fn read_answer(
    method: Method,
    body: &[u8],
    mut returnval: impl FnMut(&mut Cursor<'_>) -> Result<(), Unreadable>,
) -> Result<(), NoResult> {
    read_returned(method, body, |cursor, _| returnval(cursor))
}

/// The same, for whoever wants the element's attributes, too.
pub fn read_returned(
    method: Method,
    body: &[u8],
    mut returnval: impl FnMut(&mut Cursor<'_>, &Element<'_>) -> Result<(), Unreadable>,
) -> Result<(), NoResult> {
    let mut cursor = Cursor::new(body)?;
    let mut answered = None;
    match cursor.child() {
        Ok(Some(root)) if root.is_soap("Envelope") => {}
        Ok(_) => return Err(cursor.unreadable("no SOAP envelope").into()),
        Err(error) => return Err(error.into()),
    }
    while let Some(part) = cursor.child()? {
        if !part.is_soap("Body") {
            cursor.skip()?;
            continue;
        }
        while let Some(message) = cursor.child()? {
            if message.is_soap("Fault") {
                answered = Some(Err(read_fault(&mut cursor)?));
            } else if message.ns == super::xml::Ns::Vim
                && message.name().strip_suffix("Response") == Some(method.name())
            {
                while let Some(part) = cursor.child()? {
                    if part.is_vim("returnval") { returnval(&mut cursor, &part)? } else { cursor.skip()? }
                }
                answered = Some(Ok(()));
            } else {
                cursor.skip()?;
            }
        }
    }
    // Whatever follows the envelope is no part of the answer, unless it is more XML.
    cursor.token()?;
    match answered {
        Some(Ok(())) => Ok(()),
        Some(Err(fault)) => Err(NoResult::Fault(fault)),
        None => Err(cursor.unreadable(format!("no answer to {}", method.name())).into()),
    }
}

/// Reads a fault, `Fault` being open. Its name is the `xsi:type` of the element below `detail`, or else
/// that element's own name without `Fault`.
fn read_fault(cursor: &mut Cursor<'_>) -> Result<Fault, Unreadable> {
    let mut fault = Fault { kind: FaultKind::Other("".into()), subject: None, object: None };
    while let Some(part) = cursor.child()? {
        if part.name() != "detail" {
            cursor.skip()?;
            continue;
        }
        while let Some(cause) = cursor.child()? {
            let name = cause.name();
            let name = name.strip_suffix("Fault").unwrap_or(name).to_owned();
            let kind = FaultKind::from_name(cause.xsi_type.as_deref().unwrap_or(&name));
            let (subject, object) = read_subject(cursor)?;
            fault = Fault { kind, subject, object };
        }
    }
    Ok(fault)
}

/// Reads the rest of a fault's element: `name` of an InvalidProperty, `privilegeId` and `object` of a
/// NoPermission, `obj` of a ManagedObjectNotFound.
pub(super) fn read_subject(
    cursor: &mut Cursor<'_>,
) -> Result<(Option<String>, Option<Reference>), Unreadable> {
    let (mut subject, mut object) = (None, None);
    while let Some(part) = cursor.child()? {
        if part.is_vim("name") || part.is_vim("privilegeId") {
            subject = Some(plain(&cursor.text()?));
        } else if part.is_vim("object") {
            let kind = plain(&part.attribute("type").unwrap_or_default());
            let id = cursor.text()?;
            object = (!is_of_a_session(&id)).then(|| Reference::new(kind, plain(&id)));
        } else if part.is_vim("obj") {
            subject = Some(cursor.text()?).filter(|id| !is_of_a_session(id)).map(|id| plain(&id));
        } else {
            cursor.skip()?;
        }
    }
    Ok((subject, object))
}

/// What belongs to a session has the session's key in its name, which is nobody else's business.
fn is_of_a_session(id: &str) -> bool {
    id.contains('[')
}

/// What `RetrieveServiceContent` tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceContent {
    /// Where the tree of entities begins.
    pub root_folder: Reference,
    /// Who reads properties.
    pub property_collector: Reference,
    /// Who logs in.
    pub session_manager: Reference,
    /// Who knows events; an ESXi host asked directly may have none.
    pub event_manager: Option<Reference>,
    /// Who knows privileges.
    pub authorization_manager: Option<Reference>,
    /// Version of the API, e.g. `8.0.3.0`; plain characters only.
    pub api_version: String,
    /// `VirtualCenter`, or `HostAgent` for an ESXi host asked directly.
    pub api_type: String,
}

/// Reads the answer to `RetrieveServiceContent`.
pub fn read_service_content(body: &[u8]) -> Result<ServiceContent, NoResult> {
    let (mut root, mut properties, mut sessions) = (None, None, None);
    let (mut event_manager, mut authorization_manager) = (None, None);
    let (mut api_version, mut api_type) = (String::new(), String::new());
    read_answer(Method::RetrieveServiceContent, body, |cursor| {
        while let Some(part) = cursor.child()? {
            let slot = match part.name() {
                "rootFolder" => &mut root,
                "propertyCollector" => &mut properties,
                "sessionManager" => &mut sessions,
                "eventManager" => &mut event_manager,
                "authorizationManager" => &mut authorization_manager,
                "about" => {
                    while let Some(about) = cursor.child()? {
                        match about.name() {
                            "apiVersion" => api_version = plain(&cursor.text()?),
                            "apiType" => api_type = plain(&cursor.text()?),
                            _ => cursor.skip()?,
                        }
                    }
                    continue;
                }
                _ => {
                    cursor.skip()?;
                    continue;
                }
            };
            let kind = part.attribute("type").unwrap_or_default();
            *slot = Some(Reference::new(kind, &*cursor.text()?));
        }
        Ok(())
    })?;
    match (root, properties, sessions) {
        (Some(root_folder), Some(property_collector), Some(session_manager)) => Ok(ServiceContent {
            root_folder,
            property_collector,
            session_manager,
            event_manager,
            authorization_manager,
            api_version,
            api_type,
        }),
        _ => {
            Err(Cursor::new(body)?.unreadable("no root folder, property collector or session manager").into())
        }
    }
}

/// What `Login` tells of the session.
#[derive(Clone, PartialEq, Eq)]
pub struct UserSession {
    /// Its key, by which the server knows it. Not the cookie, but nobody else's business either.
    key: String,
    /// As whom the server knows the user.
    pub user: String,
}

impl fmt::Debug for UserSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UserSession").field("user", &self.user).finish_non_exhaustive()
    }
}

/// Reads the answer to `Login`.
pub fn read_login(body: &[u8]) -> Result<UserSession, NoResult> {
    let mut session = UserSession { key: String::new(), user: String::new() };
    read_answer(Method::Login, body, |cursor| {
        while let Some(part) = cursor.child()? {
            match part.name() {
                "key" => session.key = cursor.text()?.into_owned(),
                "userName" => {
                    session.user =
                        cursor.text()?.chars().filter(|c| !c.is_control()).take(MAX_NAME).collect();
                }
                _ => cursor.skip()?,
            }
        }
        Ok(())
    })?;
    Ok(session)
}

/// The request that asks which of `privileges` the session has on `entity` (AuthorizationManager, since
/// API 5.5).
pub fn has_privileges(
    authorization_manager: &Reference,
    entity: &Reference,
    session: &UserSession,
    privileges: &[&str],
) -> Zeroizing<String> {
    let mut parameters = reference("entity", entity) + &element("sessionId", &session.key);
    for privilege in privileges {
        parameters.push_str(&element("privId", privilege));
    }
    request(Method::HasPrivilegeOnEntities, authorization_manager, &parameters)
}

/// Reads which of the privileges are granted, and which are not.
pub fn read_privileges(body: &[u8]) -> Result<Vec<(String, bool)>, NoResult> {
    let mut privileges = Vec::new();
    read_answer(Method::HasPrivilegeOnEntities, body, |cursor| {
        while let Some(part) = cursor.child()? {
            if !part.is_vim("privAvailability") {
                cursor.skip()?;
                continue;
            }
            let (mut id, mut granted) = (String::new(), false);
            while let Some(part) = cursor.child()? {
                match part.name() {
                    "privId" => id = plain(&cursor.text()?),
                    "isGranted" => granted = matches!(cursor.text()?.trim(), "true" | "1"),
                    _ => cursor.skip()?,
                }
            }
            privileges.push((id, granted));
        }
        Ok(())
    })?;
    Ok(privileges)
}

/// The request for the server's time.
pub fn current_time() -> Zeroizing<String> {
    request(Method::CurrentTime, &Reference::new("ServiceInstance", "ServiceInstance"), "")
}

/// Reads the server's time: as it was written, and in seconds of unix time.
pub fn read_current_time(body: &[u8]) -> Result<(String, f64), NoResult> {
    let mut found = None;
    read_answer(Method::CurrentTime, body, |cursor| {
        let text = cursor.text()?;
        let time = text.trim().parse::<jiff::Timestamp>();
        let time = time.map_err(|_| cursor.unreadable("no point in time"))?;
        found = Some((text.trim().to_owned(), time.as_millisecond() as f64 / 1000.0));
        Ok(())
    })?;
    match found {
        Some(found) => Ok(found),
        None => Err(Cursor::new(body)?.unreadable("no time").into()),
    }
}

/// A reference to an object, as an element.
pub fn reference(name: &str, object: &Reference) -> String {
    format!("<{name} type=\"{}\">{}</{name}>", escape(&*object.kind), escape(&*object.id))
}

/// Reads an answer of which only the success matters.
pub fn read_success(method: Method, body: &[u8]) -> Result<(), NoResult> {
    read_answer(method, body, |cursor| cursor.skip())
}

#[cfg(test)]
#[path = "soap_tests.rs"]
mod tests;
