//! A session with one vCenter: login, reading the tree page by page, login once more when the session is
//! gone, logout.
//!
//! There is never more than one session: leaked ones have brought vCenters down. A login that is under way
//! when the caller gives up is carried on by a task of its own: the next caller waits for it, and
//! [`VimClient::logout`] can end the session that comes of it. To break it off would count against the account.

pub use super::call::VimError;
use super::call::{Whole, conclude, explain, faulted};
use super::model::{Interner, ManagedObject, Reference};
use super::page::PageReader;
use super::property::{self, Paging, Query};
use super::soap::{self, FaultKind, Method, NoResult, ServiceContent, UserSession};
use super::tls::{Certificate, Trust};
use super::transport::{LOGOUT_TIMEOUT, ReadAnswer, Stage, Transport};
use crate::accounts::guard::Guard;
use crate::accounts::{Accounts, Login, LoginSecret};
use crate::config::{ProxyUrl, VcenterConfig};
use crate::inventory::{Allow, Vcenter};
use crate::outcome::{Failure, FailureReason};
use crate::stats::Stats;
use crate::steps::Steps;
use reqwest::header::HeaderValue;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};
use tracing::Instrument;
use tracing::instrument::WithSubscriber;
use zeroize::Zeroizing;

/// Most pages of one answer: a server that never stops handing out tokens does not keep us for ever.
const MAX_PAGES: u32 = 10_000;
/// Most objects of one answer, all pages together.
const MAX_OBJECTS: usize = 200_000;
/// The sessions so far, of all clients: each has a number of its own.
static SESSIONS: AtomicU64 = AtomicU64::new(0);

/// As whom to log in, and whether a login may be tried.
#[derive(Clone)]
pub struct Access {
    /// Knows the login of a vCenter.
    pub accounts: Arc<Accounts>,
    /// Says whether it may be tried.
    pub guard: Arc<Guard>,
    /// The addresses that may be given a password.
    pub allow: Arc<Allow>,
}

/// A client of one vCenter, which keeps its session between calls. Whoever owns it calls
/// [`VimClient::logout`] in the end.
pub struct VimClient {
    transport: Transport,
    vcenter: Arc<Vcenter>,
    access: Access,
    paging: Paging,
    service: Option<ServiceContent>,
    session: Session,
    /// Which session it is.
    sessions: u64,
    /// When the read that is under way has to have ended.
    deadline: Option<Instant>,
    steps: Steps,
}

/// Whether there is a session.
enum Session {
    /// None that we know of.
    None,
    /// A login is under way; it goes on if its caller does not.
    Starting(JoinHandle<Result<UserSession, Failure>>),
    /// There is one; what the server said of it, where its answer arrived.
    Open(Option<UserSession>),
}

/// A session that is open, for whoever asks something in it beside its owner.
#[derive(Debug, Clone)]
pub struct Live {
    pub(super) transport: Transport,
    pub(super) service: ServiceContent,
    pub(super) cookies: Option<HeaderValue>,
    /// Which one it is of all the sessions of this process.
    pub number: u64,
}

impl VimClient {
    /// A client without a session; connects to nothing yet.
    ///
    /// # Errors
    /// When `ca_file` can't be used, the address is none, or is not allowed.
    pub fn new(
        config: &VcenterConfig,
        vcenter: Arc<Vcenter>,
        access: Access,
        stats: Arc<Stats>,
    ) -> Result<Self, Failure> {
        let transport = Transport::new(config, &vcenter, &access.allow, stats)?;
        let paging = if config.unpaged { Paging::None } else { Paging::Pages(config.page_size) };
        Ok(Self {
            transport,
            vcenter,
            access,
            paging,
            service: None,
            session: Session::None,
            sessions: 0,
            deadline: None,
            steps: Steps::default(),
        })
    }

    /// Takes down the steps `connect`, `login`, `read` and `logout`, with what is learned on the way.
    #[must_use]
    pub fn telling(mut self, steps: Steps) -> Self {
        self.tell(steps);
        self
    }

    /// The same from now on.
    pub fn tell(&mut self, steps: Steps) {
        self.transport.set_steps(steps.clone());
        self.steps = steps;
    }

    /// Another limit of one answer's bytes than [`super::transport::MAX_BODY`].
    #[must_use]
    pub fn with_max_body(mut self, max_body: usize) -> Self {
        self.transport.set_max_body(max_body);
        self
    }

    /// The session, if there is one as far as we know.
    pub fn live(&self) -> Option<Live> {
        let (Session::Open(_), Some(service)) = (&self.session, &self.service) else { return None };
        Some(Live {
            transport: self.transport.clone(),
            service: service.clone(),
            cookies: self.transport.session_cookies(),
            number: self.sessions,
        })
    }

    /// What the server said of the session, if there is one.
    pub fn session(&self) -> Option<&UserSession> {
        match &self.session {
            Session::Open(session) => session.as_ref(),
            _ => None,
        }
    }

    /// The certificate that the server presented last, whether it was believed or not.
    pub fn certificate(&self) -> Option<Arc<Certificate>> {
        self.transport.certificate()
    }

    /// The proxy that stands between.
    pub fn proxy(&self) -> Option<&ProxyUrl> {
        self.transport.proxy()
    }

    /// By which rule certificates are believed.
    pub fn trust(&self) -> Trust {
        self.transport.trust()
    }

    /// What the server said about itself when the session began.
    pub fn service(&self) -> Option<&ServiceContent> {
        self.service.as_ref()
    }

    /// Reads the whole tree: folders, datacenters, compute resources with name and parent, hosts with
    /// `host_properties`. See [`VimClient::retrieve`].
    pub async fn read_tree(
        &mut self,
        host_properties: &[&str],
        deadline: Instant,
    ) -> Result<Vec<ManagedObject>, VimError> {
        self.retrieve(&Query::Tree(host_properties), deadline).await
    }

    /// Reads what `query` asks for. Starts a session if there is none, and once more if it turns out to be
    /// gone. All pages or nothing, by `deadline`.
    pub async fn retrieve(
        &mut self,
        query: &Query<'_>,
        deadline: Instant,
    ) -> Result<Vec<ManagedObject>, VimError> {
        self.deadline = Some(deadline);
        self.open().await?;
        let steps = self.steps.clone();
        match steps.timed("read", self.read_pages(query)).await {
            Err(error) if error.session_is_gone() && !error.is_about_an_object_of(query) => {
                tracing::info!(vcenter = %self.vcenter.address, "the session is gone ({error}), logging in again");
                self.logout().await;
                self.open().await?;
                self.read_pages(query).await
            }
            other => other,
        }
    }

    /// The server's time, seconds of unix time. Needs a session.
    ///
    /// # Errors
    /// When the server does not say.
    pub async fn server_time(&self) -> Result<f64, VimError> {
        let (_, time) = self.ask(Method::CurrentTime, soap::current_time(), soap::read_current_time).await?;
        Ok(time)
    }

    /// Which of these privileges the account has on the root folder. `None`: the server can't tell, or
    /// there is no session.
    ///
    /// # Errors
    /// When the server does not answer that.
    pub async fn privileges(&self, wanted: &[&str]) -> Result<Option<Vec<(String, bool)>>, VimError> {
        let (Some(service), Some(session)) = (&self.service, self.session()) else { return Ok(None) };
        let Some(manager) = &service.authorization_manager else { return Ok(None) };
        let request = soap::has_privileges(manager, &service.root_folder, session, wanted);
        self.ask(Method::HasPrivilegeOnEntities, request, soap::read_privileges).await.map(Some)
    }

    /// Ends the session, if there is one, within a few seconds. Also of a login that is still under way.
    pub async fn logout(&mut self) {
        if let Session::Starting(login) = &mut self.session {
            // Whatever comes of it: an answer may hold a session, which has to be ended then.
            if tokio::time::timeout(LOGOUT_TIMEOUT, &mut *login).await.is_err() {
                login.abort();
            }
            self.session = Session::Open(None);
        }
        if let (Session::Open(_), Some(service)) = (&self.session, &self.service) {
            let request = soap::logout(&service.session_manager);
            // That it is over already is as good, and after any other failure the server's own idle limit
            // has to do.
            let ended = self.ask(Method::Logout, request, |body| soap::read_success(Method::Logout, body));
            if let Err(error) = self.steps.timed("logout", ended).await
                && !error.session_is_gone()
            {
                tracing::warn!(
                    vcenter = %self.vcenter.address,
                    "no logout, the session stays until the vCenter's idle limit: {error}"
                );
            }
        }
        self.session = Session::None;
        self.transport.drop_cookies();
    }

    /// Makes sure that there is a session, as far as we know.
    async fn open(&mut self) -> Result<(), VimError> {
        match self.session {
            Session::Open(_) => return Ok(()),
            Session::Starting(_) => return self.finish_login().await,
            Session::None => self.transport.drop_cookies(),
        }
        let login = self.access.accounts.for_vcenter(&self.vcenter).await?;
        let id = self.vcenter.id();
        self.access.guard.check(&id, login.credential).map_err(Failure::from)?;
        let (method, request) = (Method::RetrieveServiceContent, soap::retrieve_service_content());
        let service = self.steps.timed("connect", self.ask(method, request, soap::read_service_content));
        let service = service.await?;
        self.steps.fact("api_version", &*service.api_version);
        self.steps.fact("api_type", &*service.api_type);
        let attempt = LoginAttempt {
            transport: self.transport.clone(),
            vcenter: Arc::clone(&self.vcenter),
            guard: Arc::clone(&self.access.guard),
            session_manager: service.session_manager.clone(),
            login,
        };
        self.service = Some(service);
        let attempt = tokio::spawn(attempt.run().in_current_span().with_current_subscriber());
        self.session = Session::Starting(attempt);
        self.finish_login().await
    }

    /// Waits until the deadline for the login that is under way. It goes on if that is too early.
    async fn finish_login(&mut self) -> Result<(), VimError> {
        let (id, deadline) = (self.vcenter.id(), self.deadline);
        let Session::Starting(attempt) = &mut self.session else { return Ok(()) };
        let failed = |reason, what| Failure::new(reason, format!("login at {id} {what}"));
        let mut is_under_way = true;
        let attempt = async {
            let attempt = async {
                let ended = attempt.await;
                is_under_way = false;
                ended.unwrap_or_else(|_| Err(failed(FailureReason::ConnectionLost, "was cut short")))
            };
            match deadline {
                Some(deadline) => timeout_at(deadline, attempt).await.unwrap_or_else(|_| {
                    Err(failed(FailureReason::CommandTimeout, "takes longer than there is time, and goes on"))
                }),
                None => attempt.await,
            }
        };
        let result = self.steps.timed("login", attempt).await;
        if is_under_way {
            return result.map(drop).map_err(VimError::from);
        }
        self.sessions = SESSIONS.fetch_add(1, Ordering::Relaxed) + 1;
        match result {
            Ok(session) => {
                self.session = Session::Open(Some(session));
                Ok(())
            }
            Err(failure) => {
                let is_rejected = failure.reason == FailureReason::AuthFailed;
                // The cookie comes before the rest of the answer: there may well be a session.
                if !is_rejected && self.transport.session_cookies().is_some() {
                    self.session = Session::Open(None);
                    self.logout().await;
                }
                self.session = Session::None;
                Err(failure.into())
            }
        }
    }

    async fn read_pages(&mut self, query: &Query<'_>) -> Result<Vec<ManagedObject>, VimError> {
        let service = self.service.clone().ok_or_else(|| {
            Failure::new(FailureReason::CommandFailed, format!("no session with {}", self.vcenter.id()))
        })?;
        let mut strings = Interner::default();
        let mut objects = Vec::new();
        let (mut method, mut request) = property::retrieve(&service, query, self.paging);
        for number in 1..=MAX_PAGES {
            let reader = PageReader::new(method, &mut strings);
            let page = self.ask_reading(method, request, Some(number), reader).await?;
            // vcsim answers without a session like this; a vCenter with a fault.
            let unauthenticated = |object: &ManagedObject| {
                object.missing.iter().any(|(_, fault)| fault.kind == FaultKind::NotAuthenticated)
            };
            if page.objects.iter().any(unauthenticated) {
                return Err(faulted(&self.transport, method, FaultKind::NotAuthenticated.into()));
            }
            if number == 1 {
                self.steps.fact("page_size", page.objects.len().to_string());
            }
            self.steps.fact("pages", number.to_string());
            objects.extend(page.objects);
            if objects.len() > MAX_OBJECTS {
                break;
            }
            let Some(token) = page.token else { return Ok(objects) };
            method = Method::ContinueRetrievePropertiesEx;
            request = property::continue_retrieve(&service, &token);
        }
        let line =
            format!("{} lists more than {MAX_OBJECTS} objects or {MAX_PAGES} pages", self.vcenter.id());
        Err(Failure::new(FailureReason::AnswerTooLarge, line).into())
    }

    /// Asks, and reads the answer when it is there.
    async fn ask<T>(
        &self,
        method: Method,
        request: Zeroizing<String>,
        read: impl FnOnce(&[u8]) -> Result<T, NoResult> + Send,
    ) -> Result<T, VimError> {
        self.ask_reading(method, request, None, Whole::by(read)).await
    }

    /// Asks, and reads the answer while it comes.
    async fn ask_reading<R: ReadAnswer + Send>(
        &self,
        method: Method,
        request: Zeroizing<String>,
        page: Option<u32>,
        reader: R,
    ) -> Result<R::Output, VimError> {
        // A session is ended even if there is no time left.
        let deadline = self.deadline.filter(|_| method != Method::Logout);
        self.transport.ask(method, request, page, deadline, reader).await
    }
}

impl Drop for VimClient {
    fn drop(&mut self) {
        if !matches!(self.session, Session::None) {
            tracing::warn!(
                vcenter = %self.vcenter.address,
                "dropped without a logout: the session stays until the vCenter's idle limit"
            );
        }
    }
}

/// One login, with the verdict for the guard. Runs to its end even if nobody waits for it.
struct LoginAttempt {
    transport: Transport,
    vcenter: Arc<Vcenter>,
    guard: Arc<Guard>,
    session_manager: Reference,
    login: Login,
}

impl LoginAttempt {
    async fn run(self) -> Result<UserSession, Failure> {
        let Self { transport, vcenter, guard, session_manager, login } = self;
        let id = vcenter.id();
        let LoginSecret::Password(password) = &login.secret else {
            let line = format!("{id} wants a password, and a key is configured");
            return Err(Failure::new(FailureReason::NoCredentials, line));
        };
        let permit = guard.permit(&id, login.credential).await?;
        let request = soap::login(&session_manager, &login.user, password.expose());
        let mut body = Vec::new();
        let mut take = |more: &[u8]| body.extend_from_slice(more);
        let answer = match transport.call(Method::Login, request, None, None, &mut take).await {
            Ok(answer) => answer,
            Err(error) => {
                match error.stage {
                    Stage::Connecting => permit.lost_before_secret(),
                    Stage::Asking | Stage::Answering => permit.lost_after_secret(),
                }
                return Err(error.failure);
            }
        };
        let result = soap::read_login(&body);
        match &result {
            Ok(_) => permit.accepted(),
            Err(NoResult::Fault(fault)) => match fault.kind {
                FaultKind::InvalidLogin => permit.rejected(),
                // Login's documentation: user and password are right, but nothing is granted to the user.
                FaultKind::NoPermission => permit.accepted(),
                _ => permit.lost_after_secret(),
            },
            Err(NoResult::Unreadable(_)) => permit.lost_after_secret(),
        }
        let result = result.map_err(|problem| explain(&transport, Method::Login, problem));
        conclude(&transport, Method::Login, answer, result.as_ref().err());
        result.map_err(|error| error.failure)
    }
}
