package guest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"time"
)

// clockScript answers each line: "t" with the time, a number by setting the
// clock to it first. One process for all questions, because starting one costs
// an emulated guest more than the network does.
const clockScript = `while read -r l; do
case $l in t) ;; *) date -u -s "@$l" >/dev/null || exit 1 ;; esac
date +%s.%N || exit 1
done`

// Clock compares the guest's clock with the host's: offset is how far the guest
// is ahead (negative: behind), and half of roundtrip bounds its error.
func (c *Client) Clock(ctx context.Context) (offset, roundtrip time.Duration, err error) {
	return c.clock(ctx, false)
}

// SetClock sets the guest's clock to the host's, and returns what [Client.Clock]
// says afterwards.
func (c *Client) SetClock(ctx context.Context) (offset, roundtrip time.Duration, err error) {
	return c.clock(ctx, true)
}

func (c *Client) clock(ctx context.Context, set bool) (offset, roundtrip time.Duration, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	questions, ask := io.Pipe()
	answers, output := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		code, err := c.Run(ctx, Command{Line: clockScript, Stdin: questions, Stdout: output})
		if err == nil && code != 0 {
			err = fmt.Errorf("exit code %d", code)
		}
		_ = questions.CloseWithError(err)
		_ = output.CloseWithError(err)
		ended <- err
	}()
	defer func() {
		_ = ask.Close()
		if err != nil {
			cancel()
			_ = answers.Close()
			<-ended
		} else if err = <-ended; err != nil {
			err = fmt.Errorf("guest clock: %w", err)
		}
	}()
	in := bufio.NewReader(answers)

	question := func(line string) error {
		start := time.Now()
		if _, err := io.WriteString(ask, line+"\n"); err != nil {
			return fmt.Errorf("guest clock: %w", err)
		}
		text, err := in.ReadSlice('\n') // of what the buffer holds, whatever the guest says
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return fmt.Errorf("guest clock: %w", err)
		}
		roundtrip = time.Since(start)
		now, err := parseSeconds(strings.TrimSpace(string(text)))
		if err != nil {
			return fmt.Errorf("guest clock: %w", err)
		}
		offset = now.Sub(start.Add(roundtrip / 2).Round(0))
		return nil
	}
	// The first answer includes the shell's start.
	for range 2 {
		if err := question("t"); err != nil {
			return 0, 0, err
		}
	}
	if set {
		at := time.Now().Add(roundtrip / 2)
		if err := question(fmt.Sprintf("%d.%09d", at.Unix(), at.Nanosecond())); err != nil {
			return 0, 0, err
		}
		if err := question("t"); err != nil {
			return 0, 0, err
		}
	}
	return offset, roundtrip, nil
}

// parseSeconds reads seconds since 1970 with a fraction, as date prints them.
func parseSeconds(s string) (time.Time, error) {
	whole, fraction, _ := strings.Cut(s, ".")
	seconds, err := strconv.ParseInt(whole, 10, 64)
	if err != nil || seconds < 0 || seconds > math.MaxInt32*100 {
		return time.Time{}, fmt.Errorf("%q is not a time", s)
	}
	fraction = (fraction + "000000000")[:9]
	nanoseconds, err := strconv.ParseUint(fraction, 10, 32)
	if err != nil { // a date without %N
		nanoseconds = 0
	}
	return time.Unix(seconds, int64(nanoseconds)), nil
}
