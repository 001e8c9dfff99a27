use super::*;

/// Recorded answers: name of the file, the call, and what it says.
const FAULTS: &[(&str, Method, FaultKind, Option<&str>)] = &[
    ("NotAuthenticated-no-session", Method::Logout, FaultKind::NotAuthenticated, Some("System.View")),
    ("NotAuthenticated-expired-session", Method::Logout, FaultKind::NotAuthenticated, Some("System.View")),
    ("Login-bad-credentials", Method::Login, FaultKind::InvalidLogin, None),
    ("Login-while-logged-in", Method::Login, FaultKind::InvalidLogin, None),
    (
        "RetrievePropertiesEx-missing-object",
        Method::RetrievePropertiesEx,
        FaultKind::ManagedObjectNotFound,
        Some("host-999999"),
    ),
    (
        "RetrievePropertiesEx-destroyed-view",
        Method::RetrievePropertiesEx,
        FaultKind::ManagedObjectNotFound,
        None,
    ),
    ("Malformed-not-xml", Method::Login, FaultKind::InvalidRequest, None),
    ("Malformed-unclosed", Method::Login, FaultKind::InvalidRequest, None),
    ("Malformed-unknown-method", Method::Login, FaultKind::InvalidRequest, None),
    ("Malformed-method-not-on-object", Method::Login, FaultKind::MethodNotFound, None),
];

fn recorded(version: &str, name: &str) -> Vec<u8> {
    let path = format!("{}/tests/fixtures/vim/{version}/{name}.xml", env!("CARGO_MANIFEST_DIR"));
    std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

#[test]
fn recorded_faults_are_known_by_their_type() {
    for version in ["vcsim-2026-08", "vcsim-0.24.2"] {
        for (name, method, kind, subject) in FAULTS {
            let fault = match read_success(*method, &recorded(version, name)) {
                Err(NoResult::Fault(fault)) => fault,
                other => panic!("{version}/{name}: {other:?}"),
            };
            assert_eq!(fault.kind, *kind, "{version}/{name}");
            assert_eq!(fault.subject.as_deref(), *subject, "{version}/{name}");
        }
    }
    let stale = recorded("vcsim-2026-08", "ContinueRetrievePropertiesEx-stale-token");
    let Err(NoResult::Fault(stale)) = read_success(Method::ContinueRetrievePropertiesEx, &stale) else {
        panic!()
    };
    assert_eq!(stale.to_string(), "fault InvalidPropertyFault (token)");
}

#[test]
fn recorded_successes_are_successes() {
    for version in ["vcsim-2026-08", "vcsim-0.24.2"] {
        assert_eq!(read_success(Method::Login, &recorded(version, "Login")), Ok(()));
        assert_eq!(read_success(Method::Logout, &recorded(version, "Logout")), Ok(()));
        let content = read_service_content(&recorded(version, "RetrieveServiceContent")).unwrap();
        assert_eq!(content.root_folder, Reference::new("Folder", "group-d1"));
        assert_eq!(content.property_collector, Reference::new("PropertyCollector", "propertyCollector"));
        assert_eq!(content.session_manager, Reference::new("SessionManager", "SessionManager"));
        assert_eq!((content.api_version.as_str(), content.api_type.as_str()), ("6.5", "VirtualCenter"));
    }
}

#[test]
fn an_answer_to_another_call_is_no_answer() {
    let login = recorded("vcsim-2026-08", "Login");
    let error = read_success(Method::Logout, &login).unwrap_err();
    assert!(
        matches!(&error, NoResult::Unreadable(why) if why.to_string().starts_with("no answer to Logout")),
        "{error:?}"
    );
}

#[test]
fn a_fault_is_read_whatever_its_prefixes_and_with_status_200_too() {
    let text = format!(
        r#"<S:Envelope xmlns:S="{SOAP}" xmlns:q="{XSI}" xmlns:v="{VIM}"><S:Header><v:x><v:returnval/></v:x></S:Header><S:Body>
           <S:Fault><faultcode>S:Server</faultcode><faultstring>no</faultstring>
           <detail><v:AnythingFault q:type="v:InvalidProperty"><v:name>runtime.inQuarantineMode</v:name></v:AnythingFault></detail>
           </S:Fault></S:Body></S:Envelope>"#
    );
    let fault = read_success(Method::RetrievePropertiesEx, text.as_bytes()).unwrap_err();
    let wanted = Fault {
        kind: FaultKind::InvalidProperty,
        subject: Some("runtime.inQuarantineMode".into()),
        object: None,
    };
    assert_eq!(fault, NoResult::Fault(wanted));
}

#[test]
fn a_fault_without_a_type_is_known_by_its_element_and_one_without_detail_is_a_fault_still() {
    let text = |detail: &str| {
        format!(
            r#"<S:Envelope xmlns:S="{SOAP}"><S:Body><S:Fault><faultstring>x</faultstring>{detail}</S:Fault></S:Body></S:Envelope>"#
        )
    };
    let untyped = text(&format!(r#"<detail><NotAuthenticatedFault xmlns="{VIM}"/></detail>"#));
    let Err(NoResult::Fault(fault)) = read_success(Method::Login, untyped.as_bytes()) else { panic!() };
    assert_eq!(fault.kind, FaultKind::NotAuthenticated);
    let Err(NoResult::Fault(fault)) = read_success(Method::Login, text("").as_bytes()) else { panic!() };
    assert_eq!(fault.kind, FaultKind::Other("".into()));
}

#[test]
fn a_peer_cannot_write_into_the_log_by_a_faults_name() {
    let name = format!("Evil\n2026 ERROR {}", "x".repeat(200));
    let FaultKind::Other(kept) = FaultKind::from_name(&name) else { panic!() };
    assert!(kept.len() <= 64 && kept.chars().all(|c| c.is_ascii_alphanumeric()), "{kept}");
}

#[test]
fn what_xml_would_misread_in_names_and_passwords_is_escaped() {
    let request = login(&Reference::new("SessionManager", "SessionManager"), "a&b", "p<&>w\"ö");
    assert!(request.contains("<userName>a&amp;b</userName>"), "{}", *request);
    assert!(request.contains("<password>p&lt;&amp;&gt;w&quot;ö</password>"), "{}", *request);
    assert!(request.contains("<_this type=\"SessionManager\">SessionManager</_this>"));
}

#[test]
fn an_answer_that_is_cut_anywhere_is_no_answer() {
    for name in ["Login", "Login-bad-credentials", "RetrieveServiceContent"] {
        let whole = recorded("vcsim-2026-08", name);
        for end in 0..whole.len() {
            let cut = read_answer(Method::Login, &whole[..end], |cursor| cursor.skip());
            assert!(matches!(cut, Err(NoResult::Unreadable(_))), "{name} cut at {end}: {cut:?}");
        }
    }
}
