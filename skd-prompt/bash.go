package main

import "strings"

// snippet returns the lines for .bashrc that put the output of command in front
// of PS1 after every command.
//
// What an interactive bash has already is left alone. PROMPT_COMMAND gets an
// element of its own, behind whatever is there as string or array and whatever
// is assigned to it later; so prompts that others build on each round get the
// state too. PS1 is looked at anew each time, because the user may change it.
// Where PROMPT_COMMAND is read-only, as on machines that log commands with it,
// PS1 runs the program itself. The lines are also valid, and do nothing, in
// every other shell that reads the same file.
func snippet(command []string) string {
	quoted := make([]string, len(command))
	for i, word := range command {
		quoted[i] = quote(word)
	}
	run := "$(" + strings.Join(quoted, " ") + " 2>/dev/null)"
	return `# The state of the cluster node, in front of the prompt of an interactive bash.
case ${BASH_VERSION:+$-} in *i*)
	__skd_prompt() {
		local skd_status=$?
		case ${PS1-} in '[master] '* | '[backup] '* | '[] '*) PS1=${PS1#*] } ;; esac
		PS1=` + run + `${PS1-}
		case $- in *e*) ;; *) return "$skd_status" ;; esac
	}
	__skd=$(declare -p PROMPT_COMMAND 2>/dev/null) || :
	case ${__skd%%=*} in
	'declare -'*r*' PROMPT_COMMAND')
		case ${PS1-} in *skd-prompt*) ;; *) PS1=` + quote(run) + `${PS1-} ;; esac ;;
	*) PROMPT_COMMAND[112]=__skd_prompt ;;
	esac
	unset __skd
esac
`
}

// quote makes a word for a shell.
func quote(s string) string {
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
