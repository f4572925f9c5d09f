package fileset

import (
	"errors"
	"fmt"
	"strings"
)

// Split cuts text into words as a POSIX shell would: blanks and line ends
// separate, single and double quotes and the backslash protect. There are no
// expansions, no comments and no operators: * ~ $ # ; and their like stand for
// themselves. The errors are a quote that is never closed, and a NUL byte,
// which no program can be given as an argument.
func Split(text string) ([]string, error) {
	if strings.IndexByte(text, 0) >= 0 {
		return nil, errors.New("a NUL byte in the options; remove it")
	}
	var words []string
	var word []byte
	started := false // an empty pair of quotes makes a word too
	for i := 0; i < len(text); i++ {
		switch c := text[i]; c {
		case ' ', '\t', '\n':
			if started {
				words = append(words, string(word))
			}
			word, started = word[:0], false
		case '\\':
			i++
			switch {
			case i == len(text):
				word, started = append(word, '\\'), true
			case text[i] != '\n': // a line goes on after backslash and line end
				word, started = append(word, text[i]), true
			}
		case '\'':
			n := strings.IndexByte(text[i+1:], '\'')
			if n < 0 {
				return nil, openQuote(text, i)
			}
			word, started = append(word, text[i+1:i+1+n]...), true
			i += n + 1
		case '"':
			begin := i
			started = true
			for i++; ; i++ {
				if i == len(text) {
					return nil, openQuote(text, begin)
				}
				if text[i] == '"' {
					break
				}
				if text[i] == '\\' && i+1 < len(text) && strings.IndexByte("$`\"\\\n", text[i+1]) >= 0 {
					i++
					if text[i] == '\n' {
						continue
					}
				}
				word = append(word, text[i])
			}
		default:
			word, started = append(word, c), true
		}
	}
	if started {
		words = append(words, string(word))
	}
	return words, nil
}

func openQuote(text string, at int) error {
	const most = 40
	rest := text[at:]
	if len(rest) > most {
		rest = rest[:most] + "…"
	}
	return fmt.Errorf("the quote %c is never closed: %q; close it, or put a backslash before it", text[at], rest)
}
