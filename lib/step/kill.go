//go:build steps

package step

import (
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Variable is the environment variable that says where the process dies.
const Variable = "SKD_STEP"

// StopVariable is the one that says where it waits for a SIGCONT.
const StopVariable = "SKD_STOP"

// target is a name and how many times it is still passed, the last of them being the end.
type target struct {
	mu   sync.Mutex
	name string
	left int
}

var wanted, pause = parse(os.Getenv(Variable)), parse(os.Getenv(StopVariable))

func parse(text string) *target {
	name, count, more := strings.Cut(text, ":")
	n := 1
	if more {
		var err error
		if n, err = strconv.Atoi(count); err != nil || n < 1 {
			panic(Variable + "=" + text + ": want NAME or NAME:COUNT")
		}
	}
	return &target{name: name, left: n}
}

// reached tells whether name is the step to die at, this time.
func (t *target) reached(name string) bool {
	if name != t.name {
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.left--
	return t.left == 0
}

// At marks a step.
func At(name string) {
	if pause.reached(name) {
		unix.Kill(os.Getpid(), unix.SIGSTOP)
		time.Sleep(time.Millisecond) // however long the signal takes
	}
	if wanted.reached(name) {
		unix.Kill(os.Getpid(), unix.SIGKILL)
		select {} // nothing more is done, however long the signal takes
	}
}
