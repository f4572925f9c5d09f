package mirror

import (
	"io"
	"os"
	"testing"
)

func TestAPipeMayBeGivenLate(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	in, out := newLate(), newLate()
	read := make(chan string)
	go func() {
		b, _ := io.ReadAll(&in)
		read <- string(b)
	}()
	written := make(chan error)
	go func() {
		_, err := out.Write([]byte("hello"))
		written <- err
	}()
	in.give(r)
	out.give(w)
	if err := <-written; err != nil {
		t.Error(err)
	}
	out.Close()
	if got := <-read; got != "hello" {
		t.Errorf("%q", got)
	}
	in.Close()
	in.Close()

	none := newLate()
	go none.Close()
	if n, err := none.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("%d, %v", n, err)
	}
	if _, err := none.Write([]byte("x")); err == nil {
		t.Error("written to nothing")
	}
	none.give(w) // too late
	if _, err := none.Read(nil); err != io.EOF {
		t.Error(err)
	}
}
