use super::*;
use crate::vim::soap::ServiceContent;
use crate::vim::xml::{SOAP, VIM, XSD, XSI};
use proptest::prelude::*;

fn recorded(version: &str, name: &str) -> Vec<u8> {
    let path = format!("{}/tests/fixtures/vim/{version}/{name}.xml", env!("CARGO_MANIFEST_DIR"));
    std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn first_page(body: &[u8]) -> Result<Page, NoResult> {
    read_page(Method::RetrievePropertiesEx, body, &mut Interner::default())
}

fn answer(inner: &str) -> String {
    format!(
        r#"<E:Envelope xmlns:E="{SOAP}" xmlns:x="{XSD}" xmlns:t="{XSI}"><E:Body><RetrievePropertiesExResponse xmlns="{VIM}"><returnval>{inner}</returnval></RetrievePropertiesExResponse></E:Body></E:Envelope>"#
    )
}

#[test]
fn the_recorded_tree_comes_out_whole() {
    for version in ["vcsim-2026-08", "vcsim-0.24.2"] {
        let page = first_page(&recorded(version, "RetrievePropertiesEx-tree-traversal")).unwrap();
        assert_eq!(page.token, None);
        let count = |kind: &str| page.objects.iter().filter(|object| &*object.kind == kind).count();
        assert!(
            count("HostSystem") >= 10 && count("Datacenter") >= 1 && count("ClusterComputeResource") >= 1,
            "{version}"
        );
        let root = &page.objects[0];
        assert_eq!(
            (&*root.id, root.name().as_deref(), root.parent()),
            ("group-d1", Some("Datacenters"), None)
        );
        for host in page.objects.iter().filter(|object| &*object.kind == "HostSystem") {
            let above = host.parent().expect("a parent");
            let compute = page.objects.iter().find(|object| object.id == above.id).expect("it is there");
            assert_eq!(compute.kind, above.kind);
            assert!(
                ["green", "yellow", "red", "gray"].contains(&&**host.text("overallStatus").unwrap()),
                "{host:?}"
            );
        }
    }
}

#[test]
fn recorded_values_have_their_types() {
    for version in ["vcsim-2026-08", "vcsim-0.24.2"] {
        let page = first_page(&recorded(version, "RetrievePropertiesEx-full-set")).unwrap();
        let host = &page.objects[0];
        assert_eq!(host.name().as_deref(), Some("DC0_H0"));
        assert_eq!(host.flag("runtime.inMaintenanceMode"), Some(false));
        assert_eq!(host.text("runtime.connectionState").map(|t| &**t), Some("connected"));
        assert_eq!(host.get("triggeredAlarmState"), Some(&Value::Items(vec![])), "set, and empty");
        let booted = host.time("runtime.bootTime").unwrap();
        assert!((1.7e9..1.9e9).contains(&booted), "{booted}");
        assert_eq!(host.get("config.service.service"), None);
    }
}

#[test]
fn recorded_pages_lead_from_one_to_the_next() {
    let version = "vcsim-2026-08";
    let mut strings = Interner::default();
    let one = first_page(&recorded(version, "RetrievePropertiesEx-maxObjects-5")).unwrap();
    let next = Method::ContinueRetrievePropertiesEx;
    let two =
        read_page(next, &recorded(version, "ContinueRetrievePropertiesEx-page2"), &mut strings).unwrap();
    let three =
        read_page(next, &recorded(version, "ContinueRetrievePropertiesEx-page3"), &mut strings).unwrap();
    assert_eq!([one.objects.len(), two.objects.len(), three.objects.len()], [5, 5, 4]);
    assert!(one.token.is_some() && two.token.is_some() && one.token != two.token);
    assert_eq!(three.token, None);
}

#[test]
fn what_could_not_be_read_is_kept_with_its_reason() {
    for version in ["vcsim-2026-08", "vcsim-0.24.2"] {
        let page = first_page(&recorded(version, "RetrievePropertiesEx-invalid-property")).unwrap();
        for host in &page.objects {
            let [(path, fault)] = &host.missing[..] else { panic!("{:?}", host.missing) };
            assert_eq!((&**path, &fault.kind), ("noSuchProp", &FaultKind::InvalidProperty));
            assert!(host.name().is_some());
        }
        let page = first_page(&recorded(version, "RetrievePropertiesEx-nonsession")).unwrap();
        let (path, fault) = &page.objects[0].missing[0];
        assert_eq!((&**path, &fault.kind), ("name", &FaultKind::NotAuthenticated));
    }
}

#[test]
fn an_array_comes_flat_and_in_order() {
    for version in ["vcsim-2026-08", "vcsim-0.24.2"] {
        let page = first_page(&recorded(version, "RetrievePropertiesEx-services-one-host")).unwrap();
        let services = page.objects[0].items("config.service.service");
        let names: Vec<&str> = services.iter().filter_map(|service| Some(&**service.get("key")?)).collect();
        assert_eq!(names[..3], ["DCUI", "TSM", "TSM-SSH"], "{version}");
        let fields: Vec<_> = services[0].fields.iter().map(|(path, text)| format!("{path}={text}")).collect();
        assert_eq!((&*services[0].name, &*services[0].kind), ("HostService", ""));
        assert_eq!(fields[..3], ["key=DCUI", "label=Direct Console UI", "required=false"]);
        assert!(fields.contains(&"sourcePackage.sourcePackageName=esx-base".to_owned()), "{fields:?}");
    }
}

#[test]
fn items_have_types_and_limits() {
    let value = |val: &str| {
        let text = answer(&format!(
            r#"<objects><obj type="HostSystem">host-1</obj><propSet><name>p</name><val t:type="ArrayOfEvent">{val}</val></propSet></objects>
               <objects><obj type="HostSystem">host-2</obj></objects>"#
        ));
        let mut page = first_page(text.as_bytes()).unwrap();
        assert_eq!(page.objects.len(), 2, "the next one is read in any case");
        page.objects.remove(0).properties.remove(0).1
    };
    let Value::Items(items) =
        value(r#"<Event t:type="v:EventEx"><a/><b><c>1</c><c>2</c></b> </Event> <Event/>"#)
    else {
        panic!()
    };
    assert_eq!((&*items[0].name, &*items[0].kind), ("Event", "EventEx"));
    assert_eq!(items[0].get("a").map(|text| &**text), Some(""));
    assert_eq!(items[0].all("b.c").map(|text| &**text).collect::<Vec<_>>(), ["1", "2"]);
    assert_eq!(items.len(), 2);
    assert_eq!(value(&"<Event><a/></Event>".repeat(MAX_FIELDS + 1)), Value::Other);
    let Value::Items(items) = value(&format!("<Event><a>{}</a><b>1</b></Event>", "x".repeat(MAX_VALUE + 1)))
    else {
        panic!()
    };
    assert_eq!(items[0].get("b").map(|text| &**text), Some("1"), "what is too long is cut");
}

#[test]
fn a_huge_name_is_no_name_and_the_neighbours_have_theirs() {
    let object = |id: u32, name: &str| {
        format!(
            r#"<objects><obj type="HostSystem">host-{id}</obj><propSet><name>name</name><val t:type="x:string">{name}</val></propSet></objects>"#
        )
    };
    let text = answer(&(object(1, &"x".repeat(1_000_000)) + &object(2, "esx2")));
    let page = first_page(text.as_bytes()).unwrap();
    assert_eq!(page.objects.iter().map(ManagedObject::name).collect::<Vec<_>>(), [None, Some("esx2".into())]);
}

#[test]
fn zero_is_a_token_and_no_result_is_an_empty_page() {
    assert_eq!(first_page(answer("<token>0</token>").as_bytes()).unwrap().token.as_deref(), Some("0"));
    let nothing = format!(
        r#"<E:Envelope xmlns:E="{SOAP}"><E:Body><RetrievePropertiesExResponse xmlns="{VIM}"/></E:Body></E:Envelope>"#
    );
    assert_eq!(first_page(nothing.as_bytes()).unwrap(), Page::default());
}

#[test]
fn odd_values_are_other_and_unknown_elements_are_skipped() {
    let object = |val: &str| {
        let text = answer(&format!(
            r#"<later><objects/></later><objects><obj type="HostSystem">host-1</obj><more/><propSet><later>1</later><name>p</name>{val}</propSet></objects>"#
        ));
        first_page(text.as_bytes()).unwrap().objects.remove(0)
    };
    for (val, wanted) in [
        (r#"<val t:type="x:boolean">1</val>"#, Value::Bool(true)),
        (r#"<val t:type="x:boolean">yes</val>"#, Value::Other),
        (r#"<val t:type="x:boolean"></val>"#, Value::Other),
        (r#"<val t:type="x:dateTime">2026-03-01T04:05:06.5Z</val>"#, Value::Time(1_772_337_906.5)),
        (r#"<val t:type="x:dateTime">2026-03-01T05:05:06.500+01:00</val>"#, Value::Time(1_772_337_906.5)),
        (r#"<val t:type="x:dateTime">yesterday</val>"#, Value::Other),
        (r#"<val t:type="x:int">7</val>"#, Value::Other),
        (r#"<val>untyped</val>"#, Value::Other),
        (r#"<val t:type="x:string"/>"#, Value::Text("".into())),
        (r#"<val t:type="x:string">a &amp; b</val>"#, Value::Text("a & b".into())),
        (r#"<val t:type="ManagedEntityStatus">purple</val>"#, Value::Text("purple".into())),
        (
            r#"<val t:type="ArrayOfString"><string>a</string></val>"#,
            Value::Items(vec![Item {
                name: "string".into(),
                kind: "".into(),
                fields: vec![("".into(), "a".into())],
            }]),
        ),
        (
            r#"<val t:type="ManagedObjectReference" type="Folder">f-1</val>"#,
            Value::Reference(Reference::new("Folder", "f-1")),
        ),
    ] {
        assert_eq!(object(val).get("p"), Some(&wanted), "{val}");
    }
}

#[test]
fn an_answer_that_is_cut_anywhere_gives_nothing() {
    for (method, name) in [
        (Method::ContinueRetrievePropertiesEx, "ContinueRetrievePropertiesEx-page3"),
        (Method::RetrievePropertiesEx, "RetrievePropertiesEx-services-one-host"),
    ] {
        let whole = recorded("vcsim-2026-08", name);
        for end in 0..whole.len() {
            let cut = read_page(method, &whole[..end], &mut Interner::default());
            assert!(matches!(cut, Err(NoResult::Unreadable(_))), "{name} cut at {end}: {cut:?}");
        }
    }
}

proptest! {
    #[test]
    fn a_byte_that_changed_never_panics(at in 0usize..2000, to in any::<u8>()) {
        let mut bytes = recorded("vcsim-2026-08", "ContinueRetrievePropertiesEx-page3");
        let at = at % bytes.len();
        bytes[at] = to;
        let _ = read_page(Method::ContinueRetrievePropertiesEx, &bytes, &mut Interner::default());
    }
}

#[test]
fn the_question_is_one_recursive_traversal_from_the_root() {
    let service = ServiceContent {
        root_folder: Reference::new("Folder", "group-d1"),
        property_collector: Reference::new("PropertyCollector", "propertyCollector"),
        session_manager: Reference::new("SessionManager", "SessionManager"),
        event_manager: None,
        authorization_manager: None,
        api_version: String::new(),
        api_type: String::new(),
    };
    let pages = Paging::Pages(0);
    let (method, request) = retrieve(&service, &Query::Tree(&["name", "overallStatus"]), pages);
    assert_eq!(method, Method::RetrievePropertiesEx);
    assert!(request.contains(
        "<propSet><type>HostSystem</type><pathSet>name</pathSet><pathSet>overallStatus</pathSet></propSet>"
    ));
    assert!(request.contains("<name>folder</name><type>Folder</type><path>childEntity</path>"));
    assert!(request.ends_with(
        "</objectSet></specSet><options/></RetrievePropertiesEx></soapenv:Body></soapenv:Envelope>"
    ));
    let (_, sized) = retrieve(&service, &Query::Tree(&["name"]), Paging::Pages(50));
    assert!(sized.contains("<options><maxObjects>50</maxObjects></options>"));
    let (method, unpaged) = retrieve(&service, &Query::Tree(&["name"]), Paging::None);
    assert_eq!(method, Method::RetrieveProperties);
    assert!(
        unpaged.ends_with("</objectSet></specSet></RetrieveProperties></soapenv:Body></soapenv:Envelope>")
    );
    assert!(continue_retrieve(&service, "0").contains("<token>0</token>"));
}

#[test]
fn some_objects_are_asked_for_by_name_without_a_walk() {
    let service = ServiceContent {
        root_folder: Reference::new("Folder", "group-d1"),
        property_collector: Reference::new("PropertyCollector", "propertyCollector"),
        session_manager: Reference::new("SessionManager", "SessionManager"),
        event_manager: None,
        authorization_manager: None,
        api_version: String::new(),
        api_type: String::new(),
    };
    let ids = ["host-1".into(), "host<2".into()];
    let query = Query::Objects { kind: "HostSystem", ids: &ids, properties: &["name"] };
    assert!(retrieve(&service, &query, Paging::Pages(0)).1.contains(
        "<specSet><propSet><type>HostSystem</type><pathSet>name</pathSet></propSet>\
         <objectSet><obj type=\"HostSystem\">host-1</obj></objectSet>\
         <objectSet><obj type=\"HostSystem\">host&lt;2</obj></objectSet></specSet><options/>"
    ));
    assert!(query.names("host-1") && !query.names("host-2"));
}
