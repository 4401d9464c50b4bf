package guesttest

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Container is one of an [Engine]'s containers.
type Container struct {
	ID       string
	Name     string
	Size     int64
	Running  bool
	Starts   int                  // number of starts
	Bindings map[string][]Binding // HostConfig.PortBindings
	Binds    []string             // HostConfig.Binds
	Mounts   json.RawMessage      // HostConfig.Mounts

	PublishAll bool     // HostConfig.PublishAllPorts
	Exposed    []string // ExposedPorts
}

// Binding is a container's request to publish a port.
type Binding struct {
	HostIP   string `json:"HostIp"`
	HostPort string
}

// Published is a container's port as the engine lists it.
type Published struct {
	IP          string
	PrivatePort int
	PublicPort  int
	Type        string
}

// chosen is the first port that the engine chooses. A real engine chooses from the range of
// this host's own connections, and one of those may hold a port just when a test needs it.
const chosen = 21000

// Published returns the ports that the container publishes. Ports that the engine chooses are
// derived from the container's, and differ after each start.
func (c Container) Published() []Published {
	var list []Published
	bindings := maps.Clone(c.Bindings)
	if c.PublishAll && bindings == nil {
		bindings = map[string][]Binding{}
	}
	for _, port := range c.Exposed {
		if c.PublishAll && len(bindings[port]) == 0 {
			bindings[port] = []Binding{{}}
		}
	}
	for port, wishes := range bindings {
		number, protocol, _ := strings.Cut(port, "/")
		private, _ := strconv.Atoi(number)
		for _, w := range wishes {
			first, _, _ := strings.Cut(w.HostPort, "-") // the first port of a range
			public, _ := strconv.Atoi(first)
			p := Published{IP: w.HostIP, PrivatePort: private, PublicPort: cmp.Or(public, chosen+100*(c.Starts%10)+private), Type: cmp.Or(protocol, "tcp")}
			if p.IP != "" {
				list = append(list, p)
				continue
			}
			for _, p.IP = range []string{"0.0.0.0", "::"} {
				list = append(list, p)
			}
		}
	}
	slices.SortFunc(list, func(a, b Published) int {
		return cmp.Or(cmp.Compare(a.PublicPort, b.PublicPort), cmp.Compare(a.Type, b.Type), cmp.Compare(a.IP, b.IP))
	})
	return list
}

// OnPublish calls f, from one goroutine at a time, when a container starts (true) and ends
// (false).
func (e *Engine) OnPublish(f func(c Container, running bool)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.publish = f
}

func (e *Engine) handleContainers(mux *http.ServeMux) {
	mux.HandleFunc("GET /containers/json", func(w http.ResponseWriter, r *http.Request) {
		if !e.awaitLists(w, r) {
			return
		}
		all := r.URL.Query().Get("all")
		answer(w, http.StatusOK, containers(e.State(), all == "1" || all == "true"))
	})
	mux.HandleFunc("POST /containers/create", func(w http.ResponseWriter, r *http.Request) {
		var body struct {
			ExposedPorts map[string]struct{}
			HostConfig   struct {
				PortBindings    map[string][]Binding
				PublishAllPorts bool
				Binds           []string
				Mounts          json.RawMessage
			}
		}
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			answer(w, http.StatusBadRequest, map[string]string{"message": err.Error()})
			return
		}
		host := body.HostConfig
		c := Container{
			ID: newID(r.URL.Query().Get("name")), Name: r.URL.Query().Get("name"),
			Bindings: host.PortBindings, Binds: host.Binds, Mounts: host.Mounts,
			PublishAll: host.PublishAllPorts, Exposed: slices.Sorted(maps.Keys(body.ExposedPorts)),
		}
		if c.Name == "" {
			c.Name = "c" + c.ID[:8]
		}
		e.add(w, func(s *State) { s.Containers = append(s.Containers, c) }, map[string]any{"Id": c.ID, "Warnings": []string{}})
	})
	mux.HandleFunc("GET /containers/{name}/json", func(w http.ResponseWriter, r *http.Request) {
		c, found := e.State().container(r.PathValue("name"))
		if !found {
			noContainer(w, r)
			return
		}
		status := "created"
		switch {
		case c.Running:
			status = "running"
		case c.Starts > 0:
			status = "exited"
		}
		answer(w, http.StatusOK, map[string]any{
			"Id": c.ID, "Name": "/" + c.Name, "State": map[string]any{"Running": c.Running, "Status": status},
			"HostConfig": map[string]any{
				"PortBindings": c.Bindings, "PublishAllPorts": c.PublishAll, "Binds": c.Binds, "Mounts": c.Mounts,
			},
		})
	})
	for path, running := range map[string][]bool{"start": {true}, "stop": {false}, "kill": {false}, "restart": {false, true}} {
		mux.HandleFunc("POST /containers/{name}/"+path, func(w http.ResponseWriter, r *http.Request) {
			for _, on := range running {
				if !e.run(w, r, on) {
					return
				}
			}
			w.WriteHeader(http.StatusNoContent)
		})
	}
	mux.HandleFunc("POST /containers/{name}/resize", func(w http.ResponseWriter, r *http.Request) {
		c, found := e.State().container(r.PathValue("name"))
		switch {
		case !found:
			noContainer(w, r)
		case !c.Running:
			answer(w, http.StatusConflict, map[string]string{"message": "Container " + c.ID + " is not running"})
		}
	})
	mux.HandleFunc("POST /containers/{name}/rename", func(w http.ResponseWriter, r *http.Request) {
		c, found := e.State().container(r.PathValue("name"))
		if !found {
			noContainer(w, r)
			return
		}
		_ = e.change(func(s *State) {
			for i := range s.Containers {
				if s.Containers[i].ID == c.ID {
					s.Containers[i].Name = r.URL.Query().Get("name")
				}
			}
		})
		e.tell(c, "rename")
		w.WriteHeader(http.StatusNoContent)
	})
	mux.HandleFunc("DELETE /containers/{name}", func(w http.ResponseWriter, r *http.Request) {
		if !e.run(w, r, false) {
			return
		}
		c, _ := e.State().container(r.PathValue("name"))
		_ = e.change(func(s *State) {
			s.Containers = slices.DeleteFunc(s.Containers, func(o Container) bool { return o.ID == c.ID })
		})
		w.WriteHeader(http.StatusNoContent)
	})
	mux.HandleFunc("GET /events", e.events)
}

// run starts or ends the container that a request names. It reports whether that exists.
func (e *Engine) run(w http.ResponseWriter, r *http.Request, on bool) bool {
	c, found := e.State().container(r.PathValue("name"))
	if !found {
		noContainer(w, r)
		return false
	}
	if c.Running == on {
		return true
	}
	c.Running = on
	if on {
		c.Starts++
		e.published(c)
	}
	_ = e.change(func(s *State) {
		for i := range s.Containers {
			if s.Containers[i].ID == c.ID {
				s.Containers[i].Running, s.Containers[i].Starts = on, c.Starts
			}
		}
	})
	if !on {
		e.published(c)
	}
	e.tell(c, map[bool]string{true: "start", false: "die"}[on])
	return true
}

func (e *Engine) published(c Container) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.publish != nil {
		e.publish(c, c.Running)
	}
}

func noContainer(w http.ResponseWriter, r *http.Request) {
	answer(w, http.StatusNotFound, map[string]string{"message": "No such container: " + r.PathValue("name")})
}

// container finds a container by its name or ID.
func (s State) container(name string) (Container, bool) {
	for _, c := range s.Containers {
		if c.ID == name || c.Name == name {
			return c, true
		}
	}
	return Container{}, false
}

// tell sends an event to all listeners.
func (e *Engine) tell(c Container, action string) {
	now := time.Now()
	message := map[string]any{
		"Type": "container", "Action": action, "scope": "local", "time": now.Unix(), "timeNano": now.UnixNano(),
		"Actor": map[string]any{"ID": c.ID, "Attributes": map[string]string{"name": c.Name}},
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.mute {
		return
	}
	for s := range e.subscribers {
		select {
		case s <- message:
		default: // too slow: lose the event, as the real engine does
		}
	}
}

func (e *Engine) events(w http.ResponseWriter, r *http.Request) {
	messages := make(chan any, 1024)
	e.mu.Lock()
	e.subscribers[messages] = true
	e.mu.Unlock()
	defer func() {
		e.mu.Lock()
		delete(e.subscribers, messages)
		e.mu.Unlock()
	}()
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	flush := http.NewResponseController(w)
	_ = flush.Flush()
	for {
		select {
		case m := <-messages:
			if json.NewEncoder(w).Encode(m) != nil || flush.Flush() != nil {
				return
			}
		case <-r.Context().Done():
			return
		case <-e.closed:
			return
		}
	}
}

func containers(s State, all bool) []map[string]any {
	list := []map[string]any{}
	for _, c := range s.Containers {
		if !c.Running && !all {
			continue
		}
		state, status := "created", "Created"
		ports := []Published{}
		if c.Running {
			state, status = "running", "Up"
			ports = append(ports, c.Published()...)
		}
		list = append(list, map[string]any{
			"Id": c.ID, "Names": []string{"/" + c.Name}, "Image": "scratch", "State": state,
			"Status": status, "SizeRw": c.Size, "Ports": ports,
		})
	}
	return list
}

// String is for test messages.
func (c Container) String() string { return fmt.Sprintf("%s %v", c.Name, c.Published()) }
