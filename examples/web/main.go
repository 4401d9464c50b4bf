// Command web serves the files of a directory, and tells pages when one has changed.
//
//	web DIRECTORY     serve on port 8080
//	web -get URL      fetch URL and print the answer, for want of a curl
//
// A page asks for /changed, which is answered when a file of the directory has changed:
// by inotify, as the live reload of web frameworks does it, without polling.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	log.SetFlags(0)
	url := flag.String("get", "", "fetch this `URL` and print the answer")
	flag.Parse()
	var err error
	switch {
	case *url != "":
		err = get(*url)
	case flag.NArg() == 1:
		err = serve(flag.Arg(0))
	default:
		err = errors.New("usage: web DIRECTORY | web -get URL")
	}
	if err != nil {
		log.Fatal(err)
	}
}

func serve(dir string) error {
	files := http.FileServer(http.Dir(dir))
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		files.ServeHTTP(w, r)
	})
	http.HandleFunc("/changed", func(w http.ResponseWriter, r *http.Request) {
		if err := changed(r.Context(), dir, w); err != nil && r.Context().Err() == nil {
			log.Print(err)
		}
	})
	log.Println("serving", dir)
	server := &http.Server{Addr: ":8080", ReadHeaderTimeout: 10 * time.Second}
	return server.ListenAndServe()
}

// changed answers at once that it is watching, and prints the time when something below
// dir has changed.
func changed(ctx context.Context, dir string, w http.ResponseWriter) error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return err
	}
	events := os.NewFile(uintptr(fd), "inotify")
	defer events.Close()
	defer context.AfterFunc(ctx, func() { _ = events.SetDeadline(time.Now()) })()
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		_, err = unix.InotifyAddWatch(fd, path, unix.IN_MODIFY|unix.IN_ATTRIB|unix.IN_CREATE|unix.IN_DELETE|unix.IN_MOVE)
		return err
	})
	if err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	if err := http.NewResponseController(w).Flush(); err != nil {
		return err
	}
	if _, err := events.Read(make([]byte, 64<<10)); err != nil {
		return err
	}
	_, err = fmt.Fprintln(w, "changed at", time.Now().Format(time.TimeOnly))
	return err
}

func get(url string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, resp.Status)
	}
	log.Println(resp.Status)
	_, err = io.Copy(os.Stdout, resp.Body)
	return err
}
