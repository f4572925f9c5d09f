package meaning

import "bytes"

// normalStatus is an HTTP farm's status file without farmguardian's lines.
func normalStatus(content []byte) []byte {
	normal := make([]byte, 0, len(content))
	for line := range bytes.Lines(content) {
		if !isGuardians(line) {
			normal = append(normal, line...)
		}
	}
	return normal
}

// isGuardians tells whether a line is farmguardian's: "-b 0 SERVICE BACKEND fgDOWN", with numbers.
func isGuardians(line []byte) bool {
	rest, ok := bytes.CutPrefix(line, []byte("-b 0 "))
	service, rest, _ := bytes.Cut(rest, []byte(" "))
	backend, rest, _ := bytes.Cut(rest, []byte(" "))
	return ok && isNumber(service) && isNumber(backend) && string(rest) == "fgDOWN\n"
}

func isNumber(text []byte) bool {
	for _, c := range text {
		if c < '0' || c > '9' {
			return false
		}
	}
	return len(text) > 0
}
