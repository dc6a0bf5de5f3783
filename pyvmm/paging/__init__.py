"""x86 paging as data: entry formats, a walker with all permission rules, builders of tables. No KVM and no I/O."""

from __future__ import annotations
