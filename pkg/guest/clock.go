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

// clockScript prints the boot ID, then answers each line with the time: "t" asks for it, a
// number sets the clock first. One process answers all questions, because starting a process
// costs an emulated guest more than the network does.
const clockScript = `read -r boot </proc/sys/kernel/random/boot_id && echo "$boot" || exit 1
while read -r l; do
case $l in t) ;; *) date -u -s "@$l" >/dev/null || exit 1 ;; esac
date +%s.%N || exit 1
done`

// Clock is the guest's clock, compared with the host's.
type Clock struct {
	Least, Most time.Duration // bounds of how far the guest is ahead; negative: behind
	// Boot identifies the guest's boot (random(4), boot_id). It differs after each boot and
	// stays the same in a guest that resumes from saved memory.
	Boot string
}

// Clock reads the guest's clock.
func (c *Client) Clock(ctx context.Context) (Clock, error) { return c.clock(ctx, false) }

// clockLead is how far ahead SetClock puts a guest that reads its clock at once.
const clockLead = 5 * time.Millisecond

// SetClock sets the guest's clock to the host's or a little ahead, and returns what
// [Client.Clock] says afterwards. To a guest that is ahead, the host's new files look a moment
// old. To one that is behind, they come from the future, and make complains.
func (c *Client) SetClock(ctx context.Context) (Clock, error) { return c.clock(ctx, true) }

func (c *Client) clock(ctx context.Context, set bool) (clock Clock, err error) {
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

	answer := func() (string, error) {
		text, err := in.ReadSlice('\n') // at most the buffer, however much the guest sends
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return "", fmt.Errorf("guest clock: %w", err)
		}
		return strings.TrimSpace(string(text)), nil
	}
	// The guest reads its clock at some moment between question and answer. It starts a program
	// first, so that moment is nearer to the answer. Each question narrows the bounds.
	question := func(line string) (took time.Duration, err error) {
		start := time.Now()
		if _, err := io.WriteString(ask, line+"\n"); err != nil {
			return 0, fmt.Errorf("guest clock: %w", err)
		}
		text, err := answer()
		if err != nil {
			return 0, err
		}
		end := time.Now()
		now, err := parseSeconds(text)
		if err != nil {
			return 0, fmt.Errorf("guest clock: %w", err)
		}
		clock.narrow(now.Sub(end.Round(0)), now.Sub(start.Round(0)))
		return end.Sub(start), nil
	}
	// read returns the shortest time that a question took.
	read := func() (least time.Duration, err error) {
		clock.Least, clock.Most = math.MinInt64, math.MaxInt64
		least = math.MaxInt64
		for range clockReadings {
			took, err := question("t")
			if err != nil {
				return 0, err
			}
			least = min(least, took)
		}
		return least, nil
	}
	if clock.Boot, err = answer(); err != nil {
		return Clock{}, err
	}
	took, err := read()
	if err != nil {
		return Clock{}, err
	}
	if set {
		at := time.Now().Add(took + clockLead)
		if _, err := question(fmt.Sprintf("%d.%09d", at.Unix(), at.Nanosecond())); err != nil {
			return Clock{}, err
		}
		if _, err := read(); err != nil {
			return Clock{}, err
		}
	}
	return clock, nil
}

// clockReadings is how often a clock is read. The best reading counts, and the first includes
// the start of date.
const clockReadings = 4

// narrow adds the bounds of another reading. If they contradict each other, the clock was set
// in between, and the last reading holds.
func (c *Clock) narrow(least, most time.Duration) {
	if least > c.Most || most < c.Least {
		c.Least, c.Most = least, most
		return
	}
	c.Least, c.Most = max(c.Least, least), min(c.Most, most)
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
	if err != nil { // date does not know %N
		nanoseconds = 0
	}
	return time.Unix(seconds, int64(nanoseconds)), nil
}
