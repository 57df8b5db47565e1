"""Starting and supervising the ranks of several machines over pdsh and ssh."""
