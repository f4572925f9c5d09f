//go:build steps

package step

import "testing"

func TestReached(t *testing.T) {
	for text, want := range map[string][]bool{
		"": {false, false}, "a": {true, false}, "a:2": {false, true}, "b": {false, false}} {
		target := parse(text)
		for i, w := range want {
			if target.reached("a") != w {
				t.Errorf("%q, passed the %d. time: want %v", text, i+1, w)
			}
			target.reached("other")
		}
	}
}
