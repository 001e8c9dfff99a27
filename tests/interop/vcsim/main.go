// The vCenter of the interop suite: govmomi's simulator with TLS, one account,
// an inventory of given names, and a second, plain address on which a test
// sets the truth and asks what the agent did.
package main

import (
	"crypto/tls"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"sort"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:443", "address of the SOAP API")
	control := flag.String("control", "127.0.0.1:0", "address of the control API (plain HTTP)")
	cert := flag.String("cert", "", "certificate (PEM)")
	key := flag.String("key", "", "its key (PEM)")
	user := flag.String("user", "", "the account; its password is in $VCSIM_PASSWORD")
	clusters := flag.Int("clusters", 1, "number of clusters")
	names := flag.String("hosts", "", "names of the hosts, comma separated: shared out over the clusters evenly")
	standalone := flag.String("standalone", "", "names of the hosts outside of a cluster, comma separated")
	flag.Parse()

	v, err := start(*listen, *cert, *key, url.UserPassword(*user, os.Getenv("VCSIM_PASSWORD")), *clusters, list(*names), list(*standalone))
	if err != nil {
		log.Fatal(err)
	}
	go func() { log.Fatal(http.ListenAndServe(*control, v.controls())) }()

	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGINT, syscall.SIGTERM)
	<-stop
}

func list(s string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(s, ",")
}

type vcenter struct {
	model *simulator.Model

	mu       sync.Mutex
	calls    map[string]int // SOAP method → how often
	accepted int            // logins
	refused  int
}

func start(listen, certFile, keyFile string, account *url.Userinfo, clusters int, hosts, standalone []string) (*vcenter, error) {
	if clusters < 1 || len(hosts)%clusters != 0 {
		return nil, fmt.Errorf("%d hosts cannot be shared out over %d clusters", len(hosts), clusters)
	}
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return nil, err
	}
	m := simulator.VPX()
	m.Cluster, m.ClusterHost, m.Host, m.Machine = clusters, len(hosts)/clusters, len(standalone), 0
	if err := m.Create(); err != nil {
		return nil, err
	}
	v := &vcenter{model: m, calls: map[string]int{}}

	// The simulator calls clustered hosts DC0_C0_H0, …, and the others DC0_H0, …
	all := v.hosts()
	sort.Slice(all, func(i, j int) bool {
		ci, cj := strings.Contains(all[i].Name, "_C"), strings.Contains(all[j].Name, "_C")
		if ci != cj {
			return ci
		}
		return all[i].Name < all[j].Name
	})
	for i, name := range append(hosts, standalone...) {
		v.update(all[i], change("name", name), change("summary.config.name", name))
	}

	m.Map().Handler = func(_ *simulator.Context, method *simulator.Method) (mo.Reference, types.BaseMethodFault) {
		v.mu.Lock()
		defer v.mu.Unlock()
		v.calls[method.Name]++
		return nil, nil
	}
	m.Map().SessionManager().ValidLogin = func(login *types.Login) bool {
		password, _ := account.Password()
		ok := login.UserName == account.Username() && login.Password == password
		v.mu.Lock()
		defer v.mu.Unlock()
		if ok {
			v.accepted++
		} else {
			v.refused++
		}
		return ok
	}
	m.Service.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
	m.Service.Listen = &url.URL{Host: listen, User: account}
	m.Service.NewServer()
	return v, nil
}

func (v *vcenter) hosts() []*simulator.HostSystem {
	var all []*simulator.HostSystem
	for _, entity := range v.model.Map().All("HostSystem") {
		all = append(all, entity.(*simulator.HostSystem))
	}
	return all
}

func change(name string, val any) types.PropertyChange {
	return types.PropertyChange{Name: name, Val: val}
}

// triggered is the state of an alarm of that name on a host; none for an empty name. The alarm is defined if it
// is not there.
func (v *vcenter) triggered(host *simulator.HostSystem, name string) []types.AlarmState {
	if name == "" {
		return []types.AlarmState{}
	}
	self := types.ManagedObjectReference{Type: "Alarm", Value: "alarm-interop"}
	if v.model.Map().Get(self) == nil {
		alarm := &simulator.Alarm{}
		alarm.Self = self
		alarm.Info.Name = name
		v.model.Map().Put(alarm)
	}
	return []types.AlarmState{{
		Key: self.Value + "." + host.Self.Value, Entity: host.Self, Alarm: self,
		OverallStatus: types.ManagedEntityStatusRed, Time: time.Now(), Acknowledged: types.NewBool(false),
	}}
}

func (v *vcenter) update(host *simulator.HostSystem, changes ...types.PropertyChange) {
	v.model.Map().AtomicUpdate(v.model.Service.Context, host, changes)
}

// withState is the health with the state of one sensor changed (false: there is no such sensor), or with a
// processor in that state. The hosts share what they are made with, so it is a copy.
func withState(old *types.HealthSystemRuntime, kind, component, state string) (*types.HealthSystemRuntime, bool) {
	key := &types.ElementDescription{Key: state}
	health := types.HealthSystemRuntime{SystemHealthInfo: &types.HostSystemHealthInfo{}}
	known := kind == "cpu"
	if known {
		health.HardwareStatusInfo = &types.HostHardwareStatusInfo{CpuStatusInfo: []types.BaseHostHardwareElementInfo{
			&types.HostHardwareElementInfo{Name: component, Status: key},
		}}
	} else {
		health.HardwareStatusInfo = old.HardwareStatusInfo
	}
	for _, sensor := range old.SystemHealthInfo.NumericSensorInfo {
		if kind == "sensor" && sensor.Name == component {
			sensor.HealthState, known = key, true
		}
		health.SystemHealthInfo.NumericSensorInfo = append(health.SystemHealthInfo.NumericSensorInfo, sensor)
	}
	return &health, known
}

// controls is what a test may ask and do:
//
//	GET  /state                                open sessions, logins, calls, hosts and their services
//	POST /host?name=N&overallStatus=red        also connectionState, rename, maintenance, alarm, issue, and the
//	                                           states of what the host has: sensor=NAME:red, cpu=NAME:yellow
func (v *vcenter) controls() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /state", v.state)
	mux.HandleFunc("POST /host", v.setHost)
	return mux
}

func (v *vcenter) state(w http.ResponseWriter, _ *http.Request) {
	type service struct {
		Running bool
		Policy  string
	}
	type host struct {
		OverallStatus, ConnectionState string
		Services                       map[string]service
	}
	hosts := map[string]host{}
	for _, h := range v.hosts() {
		v.model.Map().WithLock(v.model.Service.Context, h, func() {
			services := map[string]service{}
			for _, s := range h.Config.Service.Service {
				services[s.Key] = service{s.Running, s.Policy}
			}
			hosts[h.Name] = host{string(h.OverallStatus), string(h.Runtime.ConnectionState), services}
		})
	}
	// Seen from a session, the session manager lists all of them.
	var sessions []string
	viewer := simulator.Session{Registry: simulator.NewRegistry(), Map: v.model.Map()}
	manager := viewer.Get(v.model.Map().SessionManager().Self).(*simulator.SessionManager)
	for _, s := range manager.SessionList {
		sessions = append(sessions, s.UserName+" "+s.UserAgent)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{
		"sessions": len(sessions), "session_list": sessions,
		"logins_accepted": v.accepted, "logins_refused": v.refused,
		"calls": v.calls, "hosts": hosts,
	})
}

func (v *vcenter) setHost(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	var host *simulator.HostSystem
	for _, h := range v.hosts() {
		if h.Name == q.Get("name") {
			host = h
		}
	}
	if host == nil {
		http.Error(w, "no such host: "+q.Get("name"), http.StatusNotFound)
		return
	}
	var changes []types.PropertyChange
	for key, values := range q {
		val := values[0]
		switch key {
		case "name":
		case "overallStatus":
			changes = append(changes, change("overallStatus", types.ManagedEntityStatus(val)),
				change("summary.overallStatus", types.ManagedEntityStatus(val)))
		case "connectionState":
			changes = append(changes, change("runtime.connectionState", types.HostSystemConnectionState(val)),
				change("summary.runtime.connectionState", types.HostSystemConnectionState(val)))
		case "maintenance":
			changes = append(changes, change("runtime.inMaintenanceMode", val == "true"),
				change("summary.runtime.inMaintenanceMode", val == "true"))
		case "alarm":
			changes = append(changes, change("triggeredAlarmState", v.triggered(host, val)))
		case "issue":
			issues := []types.BaseEvent{}
			if val != "" {
				event := &types.EventEx{EventTypeId: val}
				event.FullFormattedMessage = "Something is wrong with " + host.Name
				issues = append(issues, event)
			}
			changes = append(changes, change("configIssue", issues))
		case "sensor", "cpu":
			at := strings.LastIndexByte(val, ':')
			if at < 0 {
				http.Error(w, key+" wants NAME:STATE", http.StatusBadRequest)
				return
			}
			component, state := val[:at], val[at+1:]
			health, known := withState(host.Runtime.HealthSystemRuntime, key, component, state)
			if !known {
				http.Error(w, "no such sensor: "+component, http.StatusNotFound)
				return
			}
			changes = append(changes, change("runtime.healthSystemRuntime", health))
		case "rename":
			changes = append(changes, change("name", val), change("summary.config.name", val))
		default:
			http.Error(w, "no such setting: "+key, http.StatusBadRequest)
			return
		}
	}
	v.update(host, changes...)
	fmt.Fprintln(w, "ok")
}
