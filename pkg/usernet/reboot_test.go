package usernet_test

import (
	"context"
	"errors"
	"io"
	"syscall"
	"testing"
	"time"

	"github.com/devvm/devvm/pkg/condition"
	"github.com/devvm/devvm/pkg/usernet"
	"github.com/devvm/devvm/pkg/usernet/usernettest"
)

// TestReboot: a connection into a VM whose kernel is gone stays while nobody answers, and
// is reset once another kernel does.
func TestReboot(t *testing.T) {
	s := newStack(t, usernet.Config{})
	ours, theirs := socketPair(t)
	ctx, unplug := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, ours) }()
	before, err := usernettest.NewGuest(theirs, usernettest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer before.Close()
	l, err := before.Listen(22)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(conn, conn) }()
		}
	}()
	condition.Wait(t, "the network serves the guest", func() bool { return s.Status().Connected })
	conn, err := s.Dial(testContext(t), "tcp", "192.0.2.2:22")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, _ = conn.Write([]byte("before"))
	b := make([]byte, 6)
	if _, err := io.ReadFull(conn, b); err != nil || string(b) != "before" {
		t.Fatalf("%q, %v", b, err)
	}

	unplug()
	if err := <-served; err != nil {
		t.Error(err)
	}
	_, _ = conn.Write([]byte("into the void"))
	_ = conn.SetReadDeadline(time.Now().Add(time.Second))
	if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("while nobody answers: %v", err)
	}
	_ = conn.SetReadDeadline(time.Now().Add(30 * time.Second))
	plug(t, s, usernettest.Options{})
	start := time.Now()
	_, err = conn.Read(make([]byte, 1))
	if took := time.Since(start); err == nil || errors.Is(err, io.EOF) || took > 20*time.Second {
		t.Errorf("after the boot of another kernel: %v after %s", err, took)
	}
}
