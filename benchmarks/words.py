"""The words that module names and capabilities of the workload are made of."""

from __future__ import annotations

from typing import Final


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


OWNERS: Final = _words(
    """acme globex initech umbrella hooli stark wayne tyrell cyberdyne soylent aperture wonka oscorp vandelay dunder
    prestige massive monarch zorin virtucon gringotts sirius duff nakatomi weyland yoyodyne abstergo rekall octan
    bluth sterling pied"""
)
FIELDS: Final = _words(
    """nlp search legal finance support health sales hr code vision speech ops risk travel retail energy media science
    policy logistics security insurance tax audit"""
)
VERBS: Final = _words(
    """Summarise Classify Extract Rank Translate Answer Draft Review Score Route Detect Explain Plan Rewrite Compare
    Validate Label Cluster Predict Generate Retrieve Condense Moderate Reconcile Annotate Triage Verify Segment Enrich
    Normalise Forecast Recommend"""
)
QUALIFIERS: Final = _words(
    """Open Quarterly Inbound Customer Internal Legal Draft Urgent Archived Scanned Multilingual Structured Weekly
    Partner Vendor Clinical Regional Nested Duplicate Anonymous Public Private Pending Disputed Recurring Legacy
    Streaming Late Final Short Long Mixed"""
)
NOUNS: Final = _words(
    """Invoices Contracts Tickets Emails Reports Claims Notes Orders Reviews Papers Transcripts Resumes Policies Alerts
    Logs Forms Filings Messages Articles Questions Queries Tables Charts Receipts Letters Minutes Patents Quotes
    Shipments Bookings Surveys Proposals Snippets Incidents Budgets Ledgers Profiles Listings Audits Plans"""
)
SKILLS: Final = _words("extract classify rank translate summarise detect rewrite verify label plan")
OBJECTS: Final = _words(
    """entities dates amounts topics intents sentiment tone language tables code citations names claims risks steps
    keywords passages answers duplicates outliers relations events"""
)
