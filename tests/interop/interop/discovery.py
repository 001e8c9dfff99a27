"""No inventory at all: two vCenters that list their hosts, whose names lead to the sshds."""
import json

from .agent import Agent

CONFIG = """
inventory:
  discover_hosts: {choices}
  vcenters: [{vcenters}]
collectors:
  overall_state_collector: {{{{enabled: {polls}}}}}
  critical_service_collector: {{{{enabled: true, services: [{{services}}]}}}}
state_dir: {{home}}/state
ssh: {{{{port: {{ssh_port}}}}}}
vcenter: {{{{ca_file: {{ca}}}}}}
otlp: {{{{enabled: false}}}}
prometheus: {{{{enabled: false}}}}
"""


def tell(setup, table, binary):
    table.about("hosts that vCenters list, and no inventory file")
    fleet = setup.fleet
    listed = {name: vc.site for vc in fleet.vcenters for name in vc.truth()}
    spare = {name for vc in fleet.vcenters for name in vc.standalone} - {host.address for host in fleet.hosts}
    logins = {vc.name: vc.state()["logins_accepted"] for vc in fleet.vcenters}

    code, hosts, everything = once(setup, binary, "discovery")
    table.check("once visits whom the vCenters list, at their sites", listed,
                {host["hostsystem"]: host["site"] for host in hosts})
    table.check("… and gets in where a password does", {host.address for host in fleet.by_password},
                {host["hostsystem"] for host in hosts if host["up"]})
    table.check("a name that nobody knows is told", {name: "dns" for name in spare},
                {host["hostsystem"]: host["reason"] for host in hosts if host["hostsystem"] in spare})
    table.check("exit code, since not all of them let it in", 1, code)
    table.check("the vCenters were polled, too", [True] * len(fleet.vcenters), [vc["up"] for vc in everything["vcenters"]])
    for vc in fleet.vcenters:
        table.check(f"{vc.name}: logins", 1, vc.state()["logins_accepted"] - logins[vc.name])

    vc, resting, lost = fleet.vcenters[0], fleet.healthy, fleet.stopped
    vc.set(resting.address, maintenance="true")
    vc.set(lost.address, connectionState="disconnected")
    _, hosts, _ = once(setup, binary, "discovery-choices", choices="{{address: name, maintenance: false}}", polls=False)
    table.check("hosts in maintenance or disconnected are left out by choice, without any poll",
                set(listed) - {resting.address, lost.address}, {host["hostsystem"] for host in hosts})
    vc.set(resting.address, maintenance="false")
    vc.set(lost.address, connectionState="connected")

    _, hosts, _ = once(setup, binary, "discovery-management", choices="{{address: management}}")
    table.check("management addresses are read (all of govmomi's hosts have the same one)", {"127.0.0.1"},
                {host["hostsystem"] for host in hosts})
    for vc in fleet.vcenters:
        table.check(f"{vc.name}: sessions left", 0, vc.state()["sessions"])


def once(setup, binary, name, choices="true", polls=True):
    vcenters = ", ".join(f"{{{{address: {vc.name}, site: {vc.site}}}}}" for vc in setup.fleet.vcenters)
    config = CONFIG.format(choices=choices, vcenters=vcenters, polls=str(polls).lower())
    agent = Agent(name, setup, binary, config=config)
    del agent.env["ATLAS_FILE"]
    code, out = agent.call("once", "--format", "json")
    everything = json.loads(out)
    return code, everything["hosts"], everything
