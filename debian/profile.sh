# shellcheck shell=sh
# The state of the cluster node, "[master] ", "[backup] " or "[] ", in front of the
# prompt of an interactive bash: login shells read this, root's .bashrc does for
# the others. Does nothing in other shells, nor when the package is gone.
case ${BASH_VERSION:+$-} in
*i*) if [ -x /usr/bin/skd-prompt ]; then eval "$(/usr/bin/skd-prompt bash)"; fi ;;
esac
