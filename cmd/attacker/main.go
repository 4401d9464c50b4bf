// Command attacker does what an attacker would, for `make attack`: it looks for open
// ports, asks for answers, forges packets and reads other people's files. It also plays
// the services that are there to be found.
//
// It is a test tool, never installed, and static, so that it runs in a network
// namespace, in a container and in a VM alike. What it finds it prints as lines of JSON.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "attacker:", err)
		os.Exit(1)
	}
}

const usage = `usage:
  attacker serve -say TEXT TARGET...      answer on tcp:ADDRESS:PORT, udp:ADDRESS:PORT, unix:PATH until standard input ends (-forever: until killed)
  attacker get [-from ADDRESS] TARGET...  ask each for an answer
  attacker scan ADDRESS...                find all open TCP ports
  attacker lookup [-tcp] -server ADDRESS NAME...
  attacker forge -dev LINK -mac MAC -src ADDRESS,... -dst ADDRESS,... -port PORT,... -say TEXT [-sport PORT] [-proto ETHERTYPE]
  attacker nfs ADDRESS:PORT...            call an NFS server from a reserved port, as the kernel does
  attacker engine -say ports|flood SOCKET pose as a Docker Engine until killed
  attacker flood TARGET...                open connections for -wait, and neither read nor close them
  attacker snoop                          try each path on standard input`

// run carries out one command line.
func run(ctx context.Context, args []string, in io.Reader, out io.Writer) error {
	if len(args) == 0 {
		return errors.New(usage)
	}
	f := flag.NewFlagSet(args[0], flag.ContinueOnError)
	say := f.String("say", "hello", "text to send")
	forever := f.Bool("forever", false, "serve until killed")
	from := f.String("from", "", "source address")
	tcp := f.Bool("tcp", false, "ask over TCP")
	server := f.String("server", "", "DNS server")
	dev := f.String("dev", "", "network interface")
	mac := f.String("mac", "", "link address to send to")
	src := f.String("src", "", "source addresses")
	dst := f.String("dst", "", "destination addresses")
	ports := f.String("port", "", "destination ports")
	sport := f.Uint("sport", 40123, "source port")
	proto := f.Uint("proto", unix.ETH_P_IP, "what to tell the kernel that forged frames are")
	wait := f.Duration("wait", 2*time.Second, "how long to wait for each answer")
	if err := f.Parse(args[1:]); err != nil {
		return err
	}
	w := &results{Encoder: json.NewEncoder(out)}
	switch args[0] {
	case "serve":
		if *forever {
			in = nil
		}
		return serve(ctx, f.Args(), *say, in, out)
	case "engine":
		return engine(ctx, f.Arg(0), *say)
	case "get":
		return get(ctx, f.Args(), *from, *say, *wait, w)
	case "scan":
		return scan(ctx, f.Args(), 1, 65535, *wait, w)
	case "lookup":
		return lookup(ctx, *server, *tcp, f.Args(), *wait, w)
	case "forge":
		p, err := plan(*dev, *mac, *src, *dst, *ports, *say)
		if err != nil {
			return err
		}
		p.sport, p.proto = uint16(*sport), uint16(*proto)
		return forge(ctx, p, *wait, w)
	case "nfs":
		return nfs(ctx, f.Args(), *wait, w)
	case "flood":
		return flood(ctx, f.Args(), *say, *wait, w)
	case "snoop":
		return snoop(ctx, bufio.NewScanner(in), w)
	}
	return errors.New(usage)
}

// result is what came of one attempt.
type result struct {
	Target string `json:"target"`
	Got    string `json:"got"`            // "answer", "open", "closed", "silent", "denied", …
	Text   string `json:"text,omitempty"` // of the answer, or the error
}

// results writes them as lines of JSON.
type results struct{ *json.Encoder }

func (w *results) add(target, got, text string) error { return w.Encode(result{target, got, text}) }
