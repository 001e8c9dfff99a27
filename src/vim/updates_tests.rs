use super::*;

fn answer(inner: &str) -> Vec<u8> {
    format!(
        "<e:Envelope xmlns:e=\"http://schemas.xmlsoap.org/soap/envelope/\" \
         xmlns:i=\"http://www.w3.org/2001/XMLSchema-instance\"><e:Body>\
         <WaitForUpdatesExResponse xmlns=\"urn:vim25\">{inner}</WaitForUpdatesExResponse></e:Body></e:Envelope>"
    )
    .into_bytes()
}

fn set(version: &str, objects: &str) -> Vec<u8> {
    answer(&format!(
        "<returnval><version>{version}</version><filterSet><filter type=\"PropertyFilter\">f</filter>{objects}\
         </filterSet></returnval>"
    ))
}

fn event(key: i64, kind: &str, entity: &str) -> String {
    format!(
        "<Event i:type=\"AlarmStatusChangedEvent\"><key>{key}</key><chainId>{key}</chainId><host><name>h</name>\
         <host type=\"HostSystem\">host-1</host></host><alarm><name>a</name><alarm type=\"Alarm\">alarm-1</alarm>\
         </alarm><source><name>root</name><entity type=\"Folder\">group-d1</entity></source><entity><name>e</name>\
         <entity type=\"{kind}\">{entity}</entity></entity><from>green</from><to>red</to></Event>"
    )
}

fn page(events: &str) -> String {
    format!(
        "<objectSet><kind>modify</kind><obj type=\"EventHistoryCollector\">session[1]2</obj><changeSet>\
         <name>latestPage</name><op>assign</op><val i:type=\"ArrayOfEvent\">{events}</val></changeSet></objectSet>"
    )
}

#[test]
fn hosts_that_change_come_or_go_are_named() {
    let recorded = |name: &str| {
        let path = format!("{}/tests/fixtures/vim/updates/{name}.xml", env!("CARGO_MANIFEST_DIR"));
        read_updates(&std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"))).unwrap()
    };
    let red = recorded("overallStatus-red").unwrap();
    assert_eq!((&*red.version, red.truncated), ("P", false));
    assert_eq!(red.hosts, HashSet::from(["host-108".into()]));
    assert_eq!(recorded("three-hosts-gray").unwrap().hosts.len(), 3);
    assert_eq!(recorded("host-leaves").unwrap().hosts, HashSet::from(["host-138".into()]));
    let first = recorded("first").unwrap();
    assert!(first.truncated && first.hosts.len() == 5, "{first:?}");
    assert_eq!(recorded("idle"), None);
}

#[test]
fn an_event_names_the_host_on_which_an_alarm_was_triggered_and_no_other() {
    let events = event(7, "HostSystem", "host-2") + &event(6, "VirtualMachine", "vm-1");
    let updates = read_updates(&set("1", &page(&events))).unwrap().unwrap();
    let events = updates.events.unwrap();
    assert_eq!(events[0], Event { key: 7, host: Some("host-2".into()) });
    assert_eq!(events[1], Event { key: 6, host: None }, "a virtual machine's alarm is none of its host");
    assert!(updates.hosts.is_empty());
}

#[test]
fn a_single_event_that_is_added_is_understood_too() {
    let added = "<objectSet><kind>modify</kind><obj type=\"EventHistoryCollector\">x</obj><changeSet>\
                 <name>latestPage[9]</name><op>add</op><val i:type=\"AlarmStatusChangedEvent\"><key>9</key><entity>\
                 <entity type=\"HostSystem\">host-3</entity></entity></val></changeSet></objectSet>";
    let updates = read_updates(&set("1", added)).unwrap().unwrap();
    assert_eq!(updates.events, Some(vec![Event { key: 9, host: Some("host-3".into()) }]));
}

#[test]
fn an_answer_without_a_version_or_cut_off_is_none() {
    assert!(read_updates(&answer("<returnval><filterSet/></returnval>")).is_err());
    let whole = set("1", &page(&event(7, "HostSystem", "host-2")));
    for end in [whole.len() / 3, whole.len() / 2, whole.len() - 3] {
        assert!(read_updates(&whole[..end]).is_err(), "{end}");
    }
}
